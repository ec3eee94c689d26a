//! Files of weights by strangers: what is sound is read, everything else refused in words.

use super::pickle::Value;
use super::*;
use crate::ErrorKind;

/// A safetensors file of a header and `n` bytes of data.
fn safetensors(header: &str, n: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + n, 7);
    bytes
}

fn read(bytes: Vec<u8>) -> Result<Vec<Tensor>> {
    safetensors::read(&"x.safetensors".into(), bytes.into())
}

#[track_caller]
fn refused<T>(result: Result<T>, kind: ErrorKind, words: &str) {
    let Err(error) = result else { panic!("it is read") };
    assert!(error.kind() == kind && error.to_string().contains(words), "{:?}: {error}", error.kind());
}

#[test]
fn safetensors_that_are_sound() {
    let header = r#"{"__metadata__":{"format":"pt"},
        "a":{"dtype":"F16","shape":[2,3],"data_offsets":[4,16]},
        "b":{"dtype":"I32","shape":[],"data_offsets":[0,4]},
        "c":{"dtype":"F64","shape":[0,5],"data_offsets":[4,4]}}   "#;
    let tensors = read(safetensors(header, 16)).unwrap();
    assert_eq!(tensors.len(), 3);
    assert_eq!((tensors[0].n_rows(), tensors[0].n_cols(), tensors[0].row_bytes(1..2)), (2, 3, Some(&[7u8; 6][..])));
    refused(tensors[1].expect(&[], ""), ErrorKind::Unsupported, "got I32");
    refused(tensors[0].expect(&[3, 2], ""), ErrorKind::Mismatch, "expected [3, 2], got [2, 3]");
}

#[test]
fn safetensors_that_are_not() {
    use ErrorKind::{Format, Unsupported};
    let entry = |text: &str, n: usize| read(safetensors(&format!("{{{text}}}"), n));
    let tensor = |dtype: &str, shape: &str, offsets: &str| {
        entry(&format!(r#""a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#), 16)
    };
    refused(read(vec![1, 2, 3]), Format, "3 bytes");
    refused(read(safetensors("{}", 0)[..9].to_vec()), Format, "a header of 2 bytes in a file of 9");
    refused(read([&u64::MAX.to_le_bytes()[..], &[0; 40]].concat()), Format, "header");
    refused(read(safetensors("[]", 0)), Format, "an object of tensors");
    refused(read(safetensors(&"[".repeat(100_000), 0)), Format, "header");
    refused(read(safetensors(&format!(r#"{{"a":{}"#, "{\"b\":".repeat(50_000)), 0)), Format, "header");
    refused(tensor("F32", "[5]", "[0,20]"), Format, "cut short");
    refused(tensor("F32", "[4]", "[0,12]"), Format, "expected 16 bytes");
    refused(tensor("F32", "[4]", "[12,0]"), Format, "expected 16 bytes");
    refused(tensor("F32", "[-4]", "[0,16]"), Format, "header");
    refused(tensor("F32", "[4294967296,4294967296]", "[0,16]"), Format, "no shape");
    refused(tensor("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), Format, "no shape");
    refused(tensor("F4", "[4]", "[0,2]"), Unsupported, "\"F4\"");
    refused(tensor("F32", "[4]", "[0,16,32]"), Format, "header");
    let two = |b: &str| {
        entry(
            &format!(
                r#""a":{{"dtype":"U8","shape":[8],"data_offsets":[0,8]}},"{b}":{{"dtype":"U8","shape":[8],"data_offsets":[7,15]}}"#
            ),
            16,
        )
    };
    refused(two("b"), Format, "overlap");
}

/// A zip archive of stored entries, as PyTorch writes it.
fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let header = bytes.len() as u32;
        let sizes = [&[0; 4][..], &(data.len() as u32).to_le_bytes(), &(data.len() as u32).to_le_bytes()].concat();
        let name_len = (name.len() as u16).to_le_bytes();
        bytes.extend([b"PK\x03\x04".as_slice(), &[0; 10], &sizes, &name_len, &[0; 2], name.as_bytes(), data].concat());
        directory.extend(
            [b"PK\x01\x02".as_slice(), &[0; 12], &sizes, &name_len, &[0; 12], &header.to_le_bytes(), name.as_bytes()]
                .concat(),
        );
    }
    let n = (entries.len() as u16).to_le_bytes();
    let (at, length) = (bytes.len() as u32, directory.len() as u32);
    bytes.extend(&directory);
    bytes.extend(
        [b"PK\x05\x06".as_slice(), &[0; 4], &n, &n, &length.to_le_bytes(), &at.to_le_bytes(), &[0; 2]].concat(),
    );
    bytes
}

fn torch(entries: &[(&str, &[u8])]) -> Result<Vec<Tensor>> {
    torch::read(&"x.bin".into(), zip(entries).into())
}

/// A pickle of a dictionary `{"w": tensor}`: shape and steps in elements of a storage of `len` floats.
fn pickle(len: u8, offset: u8, shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let tuple =
        |numbers: &[u8]| [b"(".to_vec(), numbers.iter().flat_map(|n| [b'K', *n]).collect(), b"t".to_vec()].concat();
    [
        b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK".as_slice(),
        &[len],
        b"tQK",
        &[offset],
        &tuple(shape),
        &tuple(strides),
        b"\x89NtRs.",
    ]
    .concat()
}

#[test]
fn state_dictionaries() {
    let data: Vec<u8> = (0..12).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let file = |p: &[u8]| torch(&[("m/data.pkl", p), ("m/byteorder", b"little"), ("m/data/0", &data)]);
    let rows = |tensor: &Tensor| -> Vec<f32> {
        let mut values = vec![0.0; tensor.n_rows() * tensor.n_cols()];
        for (row, values) in values.chunks_mut(tensor.n_cols()).enumerate() {
            tensor.read(row, values);
        }
        values
    };
    let plain = file(&pickle(12, 1, &[2, 3], &[3, 1])).unwrap();
    assert_eq!((plain[0].name.as_str(), rows(&plain[0])), ("w", vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
    let turned = file(&pickle(12, 0, &[3, 2], &[1, 3])).unwrap();
    assert_eq!(rows(&turned[0]), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    assert!(turned[0].row_bytes(0..1).is_none());
    let steps = file(&pickle(12, 1, &[2, 2, 2], &[6, 1, 2])).unwrap();
    assert_eq!(rows(&steps[0]), [1.0, 3.0, 2.0, 4.0, 7.0, 9.0, 8.0, 10.0]);

    use ErrorKind::{Format, Unsupported};
    refused(file(&pickle(12, 7, &[2, 3], &[3, 1])), Format, "outside of its storage of 12");
    refused(file(&pickle(12, 0, &[200, 200], &[0, 0])), Format, "outside of its storage");
    refused(file(&pickle(12, 0, &[2, 3], &[1])), Format, "no shape");
    refused(file(&pickle(13, 0, &[2], &[1])), Format, "expected 13 elements");
    refused(torch(&[("m/data.pkl", &pickle(2, 0, &[2], &[1]))]), Format, "\"m/data/0\"");
    refused(torch(&[("m/data.pkl", b"."), ("n/data.pkl", b".")]), Format, "one entry data.pkl");
    refused(torch(&[("m/data.pkl", &pickle(2, 0, &[2], &[1])), ("m/byteorder", b"big")]), Unsupported, "\"big\"");
    refused(torch(&[("m/data/0", &data), ("m/data/0", &data)]), Format, "comes twice");
}

#[test]
fn zip_archives_that_are_broken() {
    use ErrorKind::{Format, Unsupported};
    let whole = zip(&[("m/data.pkl", &pickle(2, 0, &[2], &[1])), ("m/data/0", &[0; 8])]);
    let file = |bytes: &[u8]| torch::read(&"x.bin".into(), bytes.to_vec().into());
    assert!(file(&whole).is_ok());
    for n in 0..whole.len() {
        assert!(file(&whole[..n]).is_err(), "cut to {n} bytes");
    }
    let directory = whole.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    let changed = |at: usize, value: &[u8]| {
        let mut bytes = whole.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        file(&bytes)
    };
    refused(changed(directory + 10, &[8]), Unsupported, "compressed");
    refused(changed(directory + 8, &[1]), Unsupported, "encrypted");
    refused(changed(directory + 20, &[9]), Unsupported, "compressed");
    refused(changed(directory + 42, &[1]), Format, "outside");
    // The second entry said to begin where the first does.
    let second = directory + 46 + "m/data.pkl".len();
    refused(changed(second + 42, &[0]), Format, "overlap");
}

fn pickled(bytes: &[u8]) -> Result<()> {
    pickle::read("x.pkl", bytes).map(|_| ())
}

#[test]
fn code_in_pickles_is_not_run() {
    use ErrorKind::{Format, Unsupported};
    refused(pickled(b"\x80\x02cos\nsystem\nX\x02\0\0\0lstR."), Unsupported, "os.system");
    refused(pickled(b"\x80\x02cbuiltins\neval\n."), Unsupported, "builtins.eval");
    refused(pickled(b"\x80\x04\x8c\x05posix\x8c\x06system\x93."), Unsupported, "posix.system");
    refused(pickled(b"\x80\x02ctorch\nload\n."), Unsupported, "torch.load");
    refused(pickled(b"\x80\x02ctorch._utils\n_rebuild_from_type_v2\n."), Unsupported, "_rebuild_from_type_v2");
    // INST, OBJ, NEWOBJ, EXT1, DUP
    for opcode in [b'i', b'o', 0x81, 0x82, b'2'] {
        refused(pickled(&[0x80, 2, b'N', opcode]), Unsupported, "opcode");
    }
    refused(pickled(b"ccollections\nOrderedDict\n(K\x01tR."), Unsupported, "not known");
    refused(pickled(b"K\x01)R."), Unsupported, "calls Int(1)");
    refused(pickled(b"K\x01K\x02b."), Unsupported, "attributes");
    refused(pickled(b"\x8a\x09123456789."), Unsupported, "9 bytes");
    refused(pickled(b"K\x01Q."), Format, "expected a tuple");
    refused(pickled(b"(K\x01tQ."), Format, "storage");
}

#[test]
fn broken_pickles() {
    use ErrorKind::{Format, Unsupported};
    for bytes in [b"".as_slice(), b"\x80", b"K", b"X\xff\xff\xff\xffabc", b"ctorch", b"N", b"\x80\x02}"] {
        refused(pickled(bytes), Format, if bytes.starts_with(b"c") { "a line" } else { "ends in the middle" });
    }
    refused(pickled(b"."), Format, "where there is none");
    refused(pickled(b"(K\x01\x86."), Format, "where there is none");
    refused(pickled(b"K\x01(."), Format, "where there is none");
    refused(pickled(b"K\x01t."), Format, "no mark");
    refused(pickled(b"q\x00."), Format, "where there is none");
    refused(pickled(b"h\x00."), Format, "number 0");
    refused(pickled(b"K\x01K\x02a."), Format, "no list");
    refused(pickled(b"}K\x01K\x02K\x03u."), Format, "no mark");
    refused(pickled(b"}(K\x01u."), Format, "no dictionary");
    refused(pickled(b"X\x01\0\0\0\xff."), Format, "UTF-8");
    refused(pickled(&vec![b'N'; 17 << 20]), Unsupported, "more than");
}

#[test]
fn bombs_of_pickles_do_nothing() {
    // A list within itself, and a tuple in a tuple a million times over.
    let cycle = pickle::read("x.pkl", b"]q\x00h\x00ah\x00ah\x00a.").unwrap();
    assert_eq!(cycle.value, Value::List(0));
    let mut deep = vec![b'('; 1_000_000];
    deep.extend(vec![b't'; 1_000_000]);
    deep.push(b'.');
    assert!(pickled(&deep).is_ok());
    let mut deep = b"N".to_vec();
    deep.extend(vec![0x85; 1_000_000]);
    deep.push(b'.');
    assert!(pickled(&deep).is_ok());
    // Each holds ten of the one before: 10^20 items if anybody counted.
    let mut wide = b"]q\x00".to_vec();
    for i in 0..20u8 {
        wide.extend([b']', b'q', i + 1, b'(']);
        wide.extend([b'h', i].repeat(10));
        wide.push(b'e');
    }
    wide.push(b'.');
    assert!(pickled(&wide).is_ok());
    refused(torch(&[("m/data.pkl", &wide)]), ErrorKind::Unsupported, "expected a dictionary");
    // A dictionary that is its own state dictionary.
    let own = b"}q\x00X\x05\0\0\0modelh\x00s.";
    refused(torch(&[("m/data.pkl", own)]), ErrorKind::Format, "no tensors");
}

#[test]
fn every_byte_of_a_pickle_may_be_wrong() {
    let whole = pickle(12, 1, &[2, 3], &[3, 1]);
    let data = [0; 48];
    for at in 0..whole.len() {
        for value in 0..=255 {
            let mut bytes = whole.clone();
            bytes[at] = value;
            if let Ok(tensors) = torch(&[("m/data.pkl", &bytes), ("m/data/0", &data)]) {
                for tensor in tensors.iter().filter(|t| t.expect(&t.shape, "").is_ok()) {
                    let mut row = vec![0.0; tensor.n_cols()];
                    (0..tensor.n_rows()).for_each(|i| tensor.read(i, &mut row));
                }
            }
        }
    }
}
