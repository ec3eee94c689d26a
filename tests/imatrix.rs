//! Importance matrices: the files of llama.cpp, read, merged and written.
#![cfg(feature = "cli")]

use mmq::gguf::{Gguf, Writer};
use mmq::quantize::{Entry, Imatrix};
use mmq::{Dtype, ErrorKind, Result};
use proptest::prelude::*;
use std::path::PathBuf;

/// Both written by llama-imatrix, on the built-in model: `-f english.txt -c 64 -b 64 --chunks 3`.
const GGUF: &[u8] = include_bytes!("fixtures/imatrix/nano.gguf");
const DAT: &[u8] = include_bytes!("fixtures/imatrix/nano.dat");

fn fixture(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    path.to_str().expect("the checkout has a UTF-8 path").to_owned()
}

/// What `data` reads as, from a file.
fn read(data: &[u8]) -> Result<Imatrix> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hostile");
    std::fs::write(&path, data).unwrap();
    Imatrix::read(path)
}

#[track_caller]
fn refused<T>(result: Result<T>, kind: ErrorKind, words: &[&str]) {
    let Err(error) = result else { panic!("it is taken") };
    assert_eq!(error.kind(), kind, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{word:?} is not in: {error}");
    }
}

/// A GGUF file with the keys of an importance matrix and these tensors.
fn gguf(tensors: &[(&str, &[usize], &[f32])]) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.set("general.type", "imatrix").set("imatrix.datasets", vec!["a".to_owned()]);
    writer.set("imatrix.chunk_count", 2u32).set("imatrix.chunk_size", 4u32);
    for (name, shape, _) in tensors {
        writer.tensor(name, Dtype::F32, shape).unwrap();
    }
    let mut out = Vec::new();
    let mut data = tensors.iter();
    let put = |_: &_, sink: &mut mmq::gguf::Sink| {
        sink.put(&data.next().unwrap().2.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())
    };
    writer.write_to("test", &mut out, put).unwrap();
    out
}

#[test]
fn reads_what_llama_imatrix_wrote_and_writes_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let imatrix = Imatrix::read(fixture("imatrix/nano.gguf")).unwrap();
    assert_eq!((imatrix.len(), imatrix.n_chunks(), imatrix.chunk_size()), (28, 3, 64));
    assert_eq!(imatrix.datasets(), ["english.txt"]);
    let (_, entry) = imatrix.entries().find(|(name, _)| *name == "blk.0.attn_q.weight").unwrap();
    assert_eq!((entry.sums().len(), entry.counts()), (128, &[192][..]));
    let importance = imatrix.importance("blk.0.attn_q.weight").unwrap();
    assert_eq!(importance[0], (entry.sums()[0] / 192.0) as f32);
    assert!(imatrix.importance("token_embd.weight").is_none());

    let path = folder.path().join("again.gguf");
    imatrix.write(&path).unwrap();
    assert!(std::fs::read(&path).unwrap() == GGUF);
    imatrix.write_dat(&path).unwrap();
    let dat = Imatrix::read(&path).unwrap();
    let theirs = Imatrix::read(fixture("imatrix/nano.dat")).unwrap();
    assert_eq!((dat.n_chunks(), dat.datasets(), dat.chunk_size()), (3, theirs.datasets(), 0));
    for (name, _) in theirs.entries() {
        let (a, b) = (dat.importance(name).unwrap(), theirs.importance(name).unwrap());
        let c = imatrix.importance(name).unwrap();
        let near = |a: f32, b: f32| (a - b).abs() <= 3e-7 * a;
        assert!((0..a.len()).all(|i| near(a[i], b[i]) && near(a[i], c[i])), "{name}");
    }
}

#[test]
fn merged_they_add_up() {
    let one = read(GGUF).unwrap();
    let mut all = Imatrix::new(64);
    for part in [&one, &read(DAT).unwrap(), &one] {
        all.merge(part).unwrap();
    }
    assert_eq!((all.n_chunks(), all.datasets().len()), (9, 3));
    let mut other_order = read(DAT).unwrap();
    other_order.merge(&one).unwrap();
    other_order.merge(&one).unwrap();
    for (name, entry) in all.entries() {
        assert_eq!(entry.counts(), [3 * 192], "{name}");
        let (a, b, c) = (all.importance(name), one.importance(name), other_order.importance(name));
        let (a, b, c) = (a.unwrap(), b.unwrap(), c.unwrap());
        assert!((0..a.len()).all(|i| (a[i] - b[i]).abs() <= 3e-7 * b[i] && (a[i] - c[i]).abs() <= 3e-7 * c[i]));
    }
    let other =
        gguf(&[("blk.0.attn_q.weight.in_sum2", &[2], &[1.0, 2.0]), ("blk.0.attn_q.weight.counts", &[1], &[1.0])]);
    refused(all.merge(&read(&other).unwrap()), ErrorKind::Mismatch, &["blk.0.attn_q.weight", "128", "2"]);
}

#[test]
fn experts_that_saw_nothing_count_one() {
    let experts = read(&gguf(&[
        ("e.weight.in_sum2", &[3, 2], &[2.0, 4.0, 0.0, 0.0, 9.0, 3.0]),
        ("e.weight.counts", &[3, 1], &[2.0, 0.0, 3.0]),
        ("none.weight.in_sum2", &[2], &[0.0, 0.0]),
        ("none.weight.counts", &[1], &[0.0]),
    ]));
    let experts = experts.unwrap();
    assert_eq!(experts.importance("e.weight").unwrap(), [1.0, 2.0, 1.0, 1.0, 3.0, 1.0]);
    assert_eq!(experts.importance("none.weight"), None);
    assert!(experts.entries().find(|(name, _)| *name == "e.weight").is_some_and(|(_, e)| e.is_partial()));

    // Old files have one count for all experts.
    let mut old = read(&gguf(&[("e.weight.in_sum2", &[3, 2], &[1.0; 6]), ("e.weight.counts", &[1], &[1.0])])).unwrap();
    old.merge(&experts).unwrap();
    let (_, entry) = old.entries().next().unwrap();
    assert_eq!((entry.counts(), entry.sums()), (&[3, 1, 4][..], &[3.0, 5.0, 1.0, 1.0, 10.0, 4.0][..]));
}

#[test]
fn sums_of_inputs_come_along() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    let mut one = Imatrix::new(4);
    one.add("a.weight", &[4.0, 1.0], Some(&[-2.0, 0.5]), 2).unwrap();
    one.add("b.weight", &[4.0, 1.0], None, 2).unwrap();
    one.add("a.weight", &[4.0, 1.0], Some(&[-2.0, 0.5]), 2).unwrap();
    one.write(&path).unwrap();
    let mut read_again = Imatrix::read(&path).unwrap();
    assert_eq!(read_again, one);
    let mean = |imatrix: &Imatrix, tensor: &str| imatrix.entry(tensor).unwrap().mean_input();
    assert_eq!((mean(&one, "a.weight"), mean(&one, "b.weight")), (Some(vec![-1.0, 0.25]), None));
    read_again.merge(&one).unwrap();
    assert_eq!(mean(&read_again, "a.weight"), mean(&one, "a.weight"));
    one.write_dat(&path).unwrap();
    read_again.merge(&Imatrix::read(&path).unwrap()).unwrap();
    assert_eq!(mean(&read_again, "a.weight"), None);
    assert_eq!(read_again.importance("a.weight"), Some(vec![2.0, 0.5]));

    let sums: (&str, &[usize], &[f32]) = ("a.weight.in_sum2", &[2], &[1.0, 2.0]);
    let counts: (&str, &[usize], &[f32]) = ("a.weight.counts", &[1], &[1.0]);
    for (inputs, words) in [(&[1.0f32][..], "expected F32 [2]"), (&[1.0, f32::NAN], "no sum of inputs")] {
        let wrong = gguf(&[sums, counts, ("a.weight.in_sum", &[inputs.len()], inputs)]);
        refused(read(&wrong), ErrorKind::Format, &["a.weight", words]);
    }
}

#[test]
fn files_that_are_none_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    refused(Imatrix::read(folder.path()), ErrorKind::Io, &["is no regular file"]);
    refused(Imatrix::read(folder.path().join("absent")), ErrorKind::Io, &["absent"]);
    refused(Imatrix::read(fixture("llama-gqa.gguf")), ErrorKind::Format, &["llama-gqa.gguf", "no importance matrix"]);
    refused(Imatrix::read(fixture("english.txt")), ErrorKind::Format, &["english.txt", "no importance matrix"]);
    refused(Imatrix::new(512).write(folder.path().join("x")), ErrorKind::Format, &["empty"]);
    assert!(!folder.path().join("x").exists());
    let sums: (&str, &[usize], &[f32]) = ("a.weight.in_sum2", &[2], &[1.0, 2.0]);
    let counts: (&str, &[usize], &[f32]) = ("a.weight.counts", &[1], &[1.0]);
    refused(read(&gguf(&[sums])), ErrorKind::Format, &["\"a.weight\"", ".counts"]);
    refused(read(&gguf(&[sums, counts, ("b.counts", &[1], &[1.0])])), ErrorKind::Format, &["\"b\"", ".in_sum2"]);
    refused(read(&gguf(&[sums, ("a.weight.counts", &[3], &[1.0; 3])])), ErrorKind::Format, &["2 sums of 3"]);
    for count in [f32::NAN, -1.0, f32::INFINITY, 1e30] {
        let wrong = gguf(&[sums, ("a.weight.counts", &[1], &[count])]);
        refused(read(&wrong), ErrorKind::Format, &["a.weight.counts", "number of rows"]);
    }
    for sum in [f32::NAN, -1.0, f32::INFINITY] {
        let wrong = gguf(&[("a.weight.in_sum2", &[2], &[1.0, sum]), counts]);
        refused(read(&wrong), ErrorKind::Format, &["\"a.weight\"", "sum of squares"]);
    }
}

/// Whatever is read can be used.
fn use_it(imatrix: &Imatrix) {
    let mut all = Imatrix::new(512);
    all.merge(imatrix).unwrap();
    all.merge(imatrix).unwrap();
    for (name, entry) in all.entries() {
        let means: Vec<f32> = Entry::means(entry).collect();
        assert!(means.iter().all(|x| x.is_finite() && *x >= 0.0), "{name}");
    }
    let folder = tempfile::tempdir().unwrap();
    for written in [all.write(folder.path().join("a")), all.write_dat(folder.path().join("a"))] {
        if let Err(e) = written {
            assert_eq!(e.kind(), ErrorKind::Format);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_are_read_or_refused(
        dat: bool,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        near_the_start in prop::collection::vec((0..400usize, any::<u8>()), 0..3),
        end in any::<prop::sample::Index>(),
        cut: bool,
    ) {
        let mut data = if dat { DAT } else { GGUF }.to_vec();
        for (at, byte) in changes {
            let at = at.index(data.len());
            data[at] = byte;
        }
        for (at, byte) in near_the_start {
            data[at] = byte;
        }
        if cut {
            data.truncate(end.index(data.len()));
        }
        let result = if dat || !data.starts_with(b"GGUF") {
            read(&data)
        } else {
            Gguf::from_owner("damaged", data).and_then(|gguf| Imatrix::from_gguf(&gguf))
        };
        match result {
            Ok(imatrix) => use_it(&imatrix),
            Err(e) => prop_assert!(matches!(e.kind(), ErrorKind::Format | ErrorKind::Unsupported), "{e}"),
        }
    }
}
