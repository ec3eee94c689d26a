//! GGUF files: what the reader accepts, what it refuses and how it says so, what it costs, and that the writer gives back
//! what was read. Hostile files are built byte by byte, so that the writer cannot hide a fault of the reader.
#![allow(unsafe_code)]

use mmq::gguf::{Array, Gguf, Value, Writer};
use mmq::{Dtype, Error, ErrorKind};
use proptest::prelude::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::{Path, PathBuf};

/// Counts what this thread has allocated.
struct Tracking;

thread_local! {
    static LIVE: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: passes everything on to the system's allocator; the counters are plain cells that allocate nothing.
unsafe impl GlobalAlloc for Tracking {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.get().wrapping_add(layout.size());
        LIVE.set(live);
        if live < usize::MAX / 2 {
            PEAK.set(PEAK.get().max(live));
        }
        // SAFETY: the caller's promise is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.set(LIVE.get().wrapping_sub(layout.size()));
        // SAFETY: as above; `ptr` came from `alloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Tracking = Tracking;

/// What `f` gives, and the most bytes that it had allocated at once.
fn peak<T>(f: impl FnOnce() -> T) -> (T, usize) {
    LIVE.set(0);
    PEAK.set(0);
    let result = f();
    (result, PEAK.get())
}

/// The most memory that reading a file of `len` bytes may take: 16 bytes for each of the file's (the worst are keys of
/// one letter with values of one byte, whose entries double in number as they come), and the messages.
fn allowed(len: usize) -> usize {
    16 * len + 8192
}

/// Bytes of a file, put together field by field.
#[derive(Clone, Default)]
struct Raw(Vec<u8>);

impl Raw {
    fn header(version: u32, n_tensors: u64, n_kv: u64) -> Raw {
        Raw(b"GGUF".to_vec()).u32(version).u64(n_tensors).u64(n_kv)
    }
    fn bytes(mut self, bytes: &[u8]) -> Raw {
        self.0.extend(bytes);
        self
    }
    fn u32(self, v: u32) -> Raw {
        self.bytes(&v.to_le_bytes())
    }
    fn u64(self, v: u64) -> Raw {
        self.bytes(&v.to_le_bytes())
    }
    fn str(self, v: &str) -> Raw {
        self.u64(v.len() as u64).bytes(v.as_bytes())
    }
    /// A key and its value's type.
    fn key(self, key: &str, kind: u32) -> Raw {
        self.str(key).u32(kind)
    }
    fn tensor(self, name: &str, ne: &[u64], dtype: u32, offset: u64) -> Raw {
        let raw = self.str(name).u32(ne.len() as u32);
        ne.iter().fold(raw, |raw, &d| raw.u64(d)).u32(dtype).u64(offset)
    }
    fn pad(mut self, alignment: usize) -> Raw {
        self.0.resize(self.0.len().next_multiple_of(alignment), 0);
        self
    }
    fn zeros(mut self, n: usize) -> Raw {
        self.0.resize(self.0.len() + n, 0);
        self
    }
    fn read(self) -> Result<Gguf, Error> {
        Gguf::from_owner("x.gguf", self.0)
    }
}

const U8: u32 = 0;
const U32: u32 = 4;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// A small file with a bit of everything: every type of value, nested arrays, tensors of 0 to 5 dimensions.
fn sample() -> Writer {
    let mut w = Writer::new();
    w.set("general.architecture", "sample").set("general.alignment", 64u32);
    w.set("u8", 200u8).set("i8", -100i8).set("u16", 60_000u16).set("i16", -30_000i16);
    w.set("u32", 4_000_000_000u32).set("i32", -2_000_000_000i32).set("u64", u64::MAX).set("i64", i64::MIN);
    w.set("f32", 1.5f32).set("f64", -2.5f64).set("bool", true).set("empty", "");
    w.set("tokens", vec!["a".to_string(), "▁б".to_string(), String::new()]);
    w.set("scores", vec![0.5f32, -1.0]).set("types", vec![1i32, 3, 6]).set("flags", vec![true, false]);
    w.set("nothing", Vec::<f64>::new());
    w.set("nested", vec![Array::U8(vec![1, 2]), Array::String(vec!["x".into()]), Array::Array(vec![])]);
    for (name, dtype, shape) in [
        ("scalar", Dtype::F32, &[][..]),
        ("vector", Dtype::F16, &[3]),
        ("matrix", Dtype::Q4_0, &[2, 64]),
        ("cube", Dtype::BF16, &[2, 3, 4]),
        ("conv2d", Dtype::I8, &[2, 3, 2, 2]),
        ("conv3d", Dtype::F32, &[2, 3, 1, 2, 2]),
        ("super", Dtype::Q6_K, &[1, 256]),
    ] {
        w.tensor(name, dtype, shape).unwrap();
    }
    w
}

/// `writer`'s file, with bytes that tell tensors and places apart.
fn file(writer: &Writer) -> Vec<u8> {
    let mut out = Vec::new();
    let write = writer.write_to("out.gguf", &mut out, |t, sink| {
        let salt = t.name.len();
        sink.put(&(0..t.n_bytes).map(|i| (i * 7 + salt) as u8).collect::<Vec<_>>())
    });
    write.unwrap();
    out
}

/// `gguf`, written again.
fn again(gguf: &Gguf) -> Vec<u8> {
    let mut w = Writer::like(gguf);
    for t in gguf.tensors() {
        w.tensor(&t.name, t.dtype, &t.shape).unwrap();
    }
    let mut out = Vec::new();
    w.write_to("again.gguf", &mut out, |t, sink| sink.put(&gguf.bytes(gguf.tensor(&t.name).unwrap()))).unwrap();
    out
}

#[test]
fn every_value_and_shape() {
    let g = Gguf::from_owner("sample.gguf", file(&sample())).unwrap();
    let m = g.metadata();
    assert_eq!((g.name(), g.version(), g.path(), g.n_shards()), ("sample.gguf", 3, None, 1));
    assert_eq!(
        m.iter().map(|(k, _)| k).take(3).collect::<Vec<_>>(),
        ["general.architecture", "general.alignment", "u8"]
    );
    assert_eq!(m.str("general.architecture").unwrap(), Some("sample"));
    assert_eq!(m.usize("u8").unwrap(), Some(200));
    assert_eq!(m.usize("u64").unwrap(), usize::try_from(u64::MAX).ok());
    assert_eq!(m.f32("f64").unwrap(), Some(-2.5));
    assert_eq!(m.f32("i16").unwrap(), Some(-30_000.0));
    assert_eq!(m.bool("bool").unwrap(), Some(true));
    assert_eq!(m.strings("tokens").unwrap().unwrap()[1], "▁б");
    assert_eq!(m.f32s("scores").unwrap().unwrap(), [0.5, -1.0]);
    assert!(m.f32s("nothing").unwrap().unwrap().is_empty());
    assert_eq!(m.i64s("types").unwrap().unwrap(), [1, 3, 6]);
    assert_eq!(m.bools("flags").unwrap().unwrap(), [true, false]);
    assert_eq!(m.get("i64"), Some(&Value::I64(i64::MIN)));
    assert_eq!(m.usize("absent").unwrap(), None);
    let Some(Value::Array(Array::Array(nested))) = m.get("nested") else { panic!("{:?}", m.get("nested")) };
    assert_eq!(nested, &[Array::U8(vec![1, 2]), Array::String(vec!["x".into()]), Array::Array(vec![])]);

    let shapes: Vec<(&str, &[usize], usize)> =
        g.tensors().iter().map(|t| (t.name.as_str(), t.shape.as_slice(), t.n_bytes)).collect();
    assert_eq!(shapes[0], ("scalar", &[][..], 4));
    assert_eq!(shapes[2], ("matrix", &[2, 64][..], 72));
    assert_eq!(shapes[5], ("conv3d", &[2, 3, 1, 2, 2][..], 96));
    assert_eq!(g.n_params(), 1 + 3 + 128 + 24 + 24 + 24 + 256);
    assert_eq!(g.n_bytes(), 4 + 6 + 72 + 48 + 24 + 96 + 210);
    for t in g.tensors() {
        let bytes = g.bytes(t);
        assert_eq!(bytes.len(), t.n_bytes);
        assert!(bytes.iter().enumerate().all(|(i, &b)| b == (i * 7 + t.name.len()) as u8), "{}", t.name);
    }
    assert!(g.tensor("absent").is_none());
    let cube = g.bytes(g.tensor("cube").unwrap());
    assert_eq!(cube.slice(4..8)[..], cube[4..8]);
    drop(g);
    assert_eq!(cube.len(), 48, "bytes outlive the file that they came from");
}

#[test]
fn getters_name_file_key_and_both_types() {
    let g = Gguf::from_owner("sample.gguf", file(&sample())).unwrap();
    let m = g.metadata();
    let cases: Vec<(Result<(), Error>, &str)> = vec![
        (m.usize("i8").map(drop), r#"key "i8": expected a non-negative integer, got i8 -100"#),
        (m.usize("f32").map(drop), r#"key "f32": expected a non-negative integer, got f32 1.5"#),
        (m.usize("types").map(drop), r#"key "types": expected a non-negative integer, got array of 3 i32"#),
        (m.f32("tokens").map(drop), r#"key "tokens": expected a number, got array of 3 string"#),
        (m.bool("u8").map(drop), r#"key "u8": expected a bool, got u8 200"#),
        (m.str("bool").map(drop), r#"key "bool": expected a string, got bool true"#),
        (m.strings("empty").map(drop), r#"key "empty": expected an array of strings, got string """#),
        (m.f32s("tokens").map(drop), r#"key "tokens": expected an array of numbers, got array of 3 string"#),
        (m.i64s("scores").map(drop), r#"key "scores": expected an array of 64-bit integers, got array of 2 f32"#),
        (m.bools("types").map(drop), r#"key "types": expected an array of bools, got array of 3 i32"#),
        (
            m.require("llama.block_count", m.usize("llama.block_count")).map(drop),
            r#"key "llama.block_count" is missing"#,
        ),
    ];
    for (result, expected) in cases {
        let error = result.unwrap_err();
        assert_eq!(error.to_string(), format!("sample.gguf: {expected}"));
        assert_eq!(error.kind(), ErrorKind::Format);
    }
}

/// A file's bytes, and what the reader says of them.
type Case = (Raw, &'static str);

#[test]
fn messages() {
    let raw = |bytes: &[u8]| Raw(bytes.to_vec());
    let kv = |kind| Raw::header(3, 0, 1).key("k", kind);
    let one = |ne: &[u64], dtype, offset| Raw::header(3, 1, 0).tensor("t", ne, dtype, offset).pad(32).zeros(128);
    let nested = |depth| (0..depth).fold(kv(ARRAY), |raw, _| raw.u32(ARRAY).u64(1)).u32(U8).u64(0);
    let cases: Vec<Case> = vec![
        (raw(b""), "not a GGUF file: it is empty"),
        (raw(b"GG"), r#"not a GGUF file: it starts with "GG""#),
        (raw(b"\x01\x02\x03\xff..."), r#"not a GGUF file: it starts with "\x01\x02\x03\xff""#),
        (raw(b"GGUF\x03"), "the file ends after 5 bytes, within its header"),
        (raw(b"FUGG\0\0\0\x03"), "a big-endian GGUF file; only little-endian ones are supported"),
        (raw(b"GGUF\0\0\0\x03"), "a big-endian GGUF file (version 3); only little-endian ones are supported"),
        (Raw::header(1, 0, 0), "GGUF version 1 is not supported (2 and 3 are); convert the model again"),
        (Raw::header(0, 0, 0), "GGUF version 0 is not supported (2 and 3 are)"),
        (Raw::header(4, 0, 0), "GGUF version 4 is not supported (2 and 3 are)"),
        (raw(b"lmgg\0\0"), "not a GGUF file: a GGML file, from before GGUF; convert the model again"),
        (raw(b"tjgg\x03\0"), "not a GGUF file: a GGJT file, from before GGUF; convert the model again"),
        (raw(b"\x10\0\0\0\0\0\0\0{\"a\":1}"), "not a GGUF file: a safetensors file; convert the model to GGUF first"),
        (
            raw(b"PK\x03\x04.."),
            "not a GGUF file: a ZIP archive, perhaps a PyTorch checkpoint; convert the model to GGUF first",
        ),
        (
            raw(b"\x80\x02\x8a"),
            "not a GGUF file: a Python pickle, perhaps a PyTorch checkpoint; convert the model to GGUF first",
        ),
        (
            raw(b"\n<!DOCTYPE html>"),
            "not a GGUF file: a web page, perhaps an error or a login in place of the download",
        ),
        (raw(b"{\"error\":"), "not a GGUF file: JSON, perhaps an error in place of the download"),
        (
            raw(b"version https://git-lfs.github.com/spec/v1\noid"),
            "not a GGUF file: a Git LFS pointer, not the file that it stands for; run `git lfs pull`",
        ),
        (raw(b"\x89PNG\r\n"), "not a GGUF file: a PNG picture"),
        (raw(&[0; 100]), "not a GGUF file: it starts with zeros, like an unfinished download"),
        // Counts.
        (
            raw(b"GGUF\x03\0\0\0\0\0"),
            "the tensor count of 8 bytes at 8 goes beyond the end of the file (10 bytes), which must be cut short or damaged",
        ),
        (
            Raw::header(3, u64::MAX, 0),
            "18446744073709551615 tensors cannot fit in the 0 bytes from 24 to the end of the file, which must be cut short or damaged",
        ),
        (
            Raw::header(3, 0, 1 << 40),
            "1099511627776 metadata keys cannot fit in the 0 bytes from 24 to the end of the file, which must be cut short or damaged",
        ),
        // Keys and values.
        (
            Raw::header(3, 0, 1).u64(1 << 33).zeros(20),
            "metadata key 0 of 1: 8589934592 bytes of a string cannot fit in the 20 bytes from 32 to the end of the file, \
             which must be cut short or damaged",
        ),
        (Raw::header(3, 0, 1).key("", U32).u32(1), "a key is empty"),
        (Raw::header(3, 0, 2).key("k", U32).u32(1).key("k", U32).u32(2), r#"key "k" comes twice"#),
        (kv(13).u32(0), r#"key "k": unknown value type 13, expected 0 to 12"#),
        (
            kv(U32).zeros(3),
            r#"key "k": a u32 of 4 bytes at 37 goes beyond the end of the file (40 bytes), which must be cut short or damaged"#,
        ),
        (kv(BOOL).bytes(&[2]), r#"key "k": a bool is 2, expected 0 or 1"#),
        (
            kv(STRING).u64(6).bytes(b"ab\xff\x1b[m"),
            r#"key "k": the string of 6 bytes at 45 is not UTF-8 (byte 2): "ab�\u{1b}[m""#,
        ),
        (
            kv(ARRAY).u32(U32).u64(u64::MAX),
            "key \"k\": 18446744073709551615 elements of type u32 cannot fit in the 0 bytes from 49 to the end of the file, \
             which must be cut short or damaged",
        ),
        (kv(ARRAY).u32(BOOL).u64(2).bytes(&[1, 9]), r#"key "k": element 1 of 2: a bool is 9, expected 0 or 1"#),
        (kv(ARRAY).u32(77).u64(0), r#"key "k": unknown value type 77, expected 0 to 12"#),
        (
            nested(8),
            "key \"k\": element 0 of 1: element 0 of 1: element 0 of 1: element 0 of 1: element 0 of 1: element 0 of 1: \
             element 0 of 1: element 0 of 1: arrays nest deeper than 8 levels",
        ),
        (
            Raw::header(3, 0, 1).key("\x1b[31mk", U32),
            r#"key "\u{1b}[31mk": a u32 of 4 bytes at 42 goes beyond the end of the file (42 bytes), which must be cut short or damaged"#,
        ),
        (
            Raw::header(3, 0, 1).key("general.alignment", U32).u32(48),
            r#"key "general.alignment": expected a power of two from 8 to 2097152, got u32 48"#,
        ),
        (
            Raw::header(3, 0, 1).key("general.alignment", STRING).str("32"),
            r#"key "general.alignment": expected a power of two from 8 to 2097152, got string "32""#,
        ),
        (
            Raw::header(3, 0, 1).key("general.alignment", U32).u32(1 << 30),
            r#"key "general.alignment": expected a power of two from 8 to 2097152, got u32 1073741824"#,
        ),
        // Tensors.
        (Raw::header(3, 1, 0).tensor("", &[1], 0, 0), r#"tensor "": the name is empty"#),
        (one(&[1; 6], 0, 0), r#"tensor "t": 6 dimensions, where at most 5 are known"#),
        (one(&[4, 0], 0, 0), r#"tensor "t": shape [0, 4] has a dimension of size 0"#),
        (one(&[1 << 32, 1 << 32], 0, 0), r#"tensor "t": shape [4294967296, 4294967296] is too large"#),
        (one(&[1 << 62], 0, 0), r#"tensor "t": shape [4611686018427387904] is too large"#),
        (one(&[33], 2, 0), r#"tensor "t": rows of 33 are no whole number of Q4_0 blocks, which hold 32 weights each"#),
        (one(&[1], 5, 0), r#"tensor "t": type 5 (Q4_2 or Q4_3) was removed from GGUF; convert the model again"#),
        (
            one(&[32], 31, 0),
            "tensor \"t\": type 31 (a repacked Q4_0 or IQ4_NL) was removed from GGUF; quantize the model again, to Q4_0 or IQ4_NL",
        ),
        (one(&[32], 4000, 0), r#"tensor "t": unknown tensor type 4000: the file is damaged, or newer than mmq"#),
        (one(&[1], 0, 4), r#"tensor "t": offset 4 is no multiple of the alignment, 32"#),
        (
            one(&[1], 0, 128),
            "tensor \"t\": its 4 bytes at 64 + 128 go beyond the end of the file (192 bytes), which must be cut short or damaged",
        ),
        (
            one(&[33], 0, 0),
            "tensor \"t\": its 132 bytes at 64 + 0 go beyond the end of the file (192 bytes), which must be cut short or damaged",
        ),
        (
            one(&[1], 0, u64::MAX - 31),
            "tensor \"t\": its 4 bytes at 64 + 18446744073709551584 go beyond the end of the file (192 bytes), which must be cut short or damaged",
        ),
        (
            Raw::header(3, 2, 0).tensor("a", &[16], 0, 0).tensor("b", &[8], 0, 32).pad(32).zeros(64),
            r#"tensors "a" (64 bytes at 96) and "b" (32 bytes at 128) overlap"#,
        ),
        (
            Raw::header(3, 2, 0).tensor("a", &[8], 0, 0).tensor("a", &[8], 0, 32).pad(32).zeros(64),
            r#"tensor "a" comes twice"#,
        ),
        (
            Raw::header(3, 0, 2).key("split.count", U32).u32(3).key("split.no", U32).u32(0),
            "a shard of a split model, which cannot be read from memory",
        ),
    ];
    for (raw, expected) in cases {
        let error = raw.read().expect_err(expected);
        assert_eq!(error.to_string(), format!("x.gguf: {expected}"));
    }
}

#[test]
fn accepts_what_is_odd_but_sound() {
    assert!(Raw::header(2, 0, 0).read().unwrap().tensors().is_empty(), "version 2, nothing in it");
    // Out of order, with a gap, and bytes after the end.
    let g = Raw::header(3, 2, 0).tensor("b", &[8], 0, 96).tensor("a", &[8], 0, 0).pad(32).zeros(133).read().unwrap();
    assert_eq!(g.tensors().iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["b", "a"]);
    // Seven arrays around one.
    let kv = Raw::header(3, 0, 1).key("k", ARRAY);
    let nested = (0..7).fold(kv, |raw, _| raw.u32(ARRAY).u64(1)).u32(U8).u64(1).bytes(&[5]);
    let nested = nested.read().unwrap();
    assert!(matches!(nested.metadata().get("k"), Some(Value::Array(Array::Array(_)))));
    // A name longer than ggml's 64 bytes, and the last tensor without padding.
    let name = "n".repeat(1000);
    let g = Raw::header(3, 1, 0).tensor(&name, &[1], 0, 0).pad(32).zeros(4).read().unwrap();
    assert_eq!(g.tensor(&name).unwrap().n_bytes, 4);
    assert_eq!(again(&g).len() as u64, g.file_bytes(), "no padding where there was none");
}

#[test]
fn round_trips_bit_for_bit() {
    let written = file(&sample());
    assert_eq!(again(&Gguf::from_owner("a", written.clone()).unwrap()), written);
    // Through the file system, over the very file that is read.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, &written).unwrap();
    {
        let g = Gguf::open(&path).unwrap();
        assert_eq!(g.path(), Some(path.as_path()));
        let mut w = Writer::like(&g);
        for t in g.tensors() {
            w.tensor(&t.name, t.dtype, &t.shape).unwrap();
        }
        let to = if cfg!(windows) { dir.path().join("other.gguf") } else { path.clone() };
        w.write(&to, |t, sink| sink.put(&g.bytes(g.tensor(&t.name).unwrap()))).unwrap();
        assert_eq!(std::fs::read(&to).unwrap(), written);
    }
    // Padding of the end and version 2 are kept; so are files of metadata only.
    let bare = Raw::header(2, 0, 1).key("k", STRING).str("odd").0;
    assert_eq!(again(&Gguf::from_owner("b", bare.clone()).unwrap()), bare);
}

#[test]
fn writer_refuses_what_a_reader_would() {
    let error = |w: &Writer| w.write_to("out.gguf", &mut Vec::new(), |_, _| Ok(())).unwrap_err().to_string();
    let with = |key: &str, value: Value| {
        let mut w = Writer::new();
        w.set(key, value);
        w
    };
    assert_eq!(error(&with("", 1u8.into())), "out.gguf: a key is empty");
    assert_eq!(
        error(&with("general.alignment", 12u32.into())),
        r#"out.gguf: key "general.alignment": expected a power of two from 8 to 2097152, got u32 12"#
    );
    let deep = (0..8).fold(Array::U8(vec![]), |inner, _| Array::Array(vec![inner]));
    assert_eq!(error(&with("k", deep.into())), r#"out.gguf: key "k": arrays nest deeper than 8 levels"#);
    let mut w = Writer::new();
    assert_eq!(
        w.tensor("t", Dtype::Q4_K, &[2, 128]).unwrap_err().to_string(),
        r#"tensor "t": rows of 128 are no whole number of Q4_K blocks, which hold 256 weights each"#
    );
    w.tensor("t", Dtype::F32, &[2]).unwrap();
    assert_eq!(error(&w), r#"out.gguf: tensor "t": expected 8 bytes of data, got 0"#);
    let much = w.write_to("out.gguf", &mut Vec::new(), |_, sink| sink.put(&[0; 9])).unwrap_err();
    assert_eq!(much.to_string(), r#"out.gguf: tensor "t": more than its 8 bytes of data"#);
    w.tensor("t", Dtype::F32, &[2]).unwrap();
    assert_eq!(error(&w), r#"out.gguf: tensor "t" comes twice"#);

    // A write that fails leaves neither half a file nor a temporary one, and keeps what was there.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, "old").unwrap();
    w.write(&path, |_, _| Ok(())).unwrap_err();
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// Shard `no` of `count` with one tensor, in `dir`.
fn shard(dir: &Path, no: u16, count: u16, change: impl FnOnce(&mut Writer)) -> PathBuf {
    let path = dir.join(format!("m-{:05}-of-{count:05}.gguf", no + 1));
    let mut w = Writer::new();
    if no == 0 {
        w.set("general.name", "first");
    }
    w.set("split.no", no).set("split.count", count).set("split.tensors.count", i32::from(count));
    w.tensor(&format!("t{no}"), Dtype::F32, &[2]).unwrap();
    change(&mut w);
    w.write(&path, |t, sink| sink.put(&vec![no as u8 + 1; t.n_bytes])).unwrap();
    path
}

#[test]
fn split_models() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let paths: Vec<PathBuf> = (0..3).map(|no| shard(dir, no, 3, |_| ())).collect();
    // What is said of them, with the folder cut off.
    let error = |i: usize| {
        let error = Gguf::open(&paths[i]).unwrap_err().to_string();
        error.replace(&format!("{}{}", dir.display(), std::path::MAIN_SEPARATOR), "")
    };
    for path in &paths {
        let g = Gguf::open(path).unwrap();
        assert_eq!(g.n_shards(), 3);
        assert_eq!(g.path(), Some(paths[0].as_path()));
        assert_eq!(g.metadata().str("general.name").unwrap(), Some("first"));
        assert_eq!(g.tensors().len(), 3);
        for (i, t) in g.tensors().iter().enumerate() {
            assert_eq!(t.name, format!("t{i}"));
            assert_eq!(g.bytes(t)[..], [i as u8 + 1; 8]);
        }
        // Written again it is one file.
        let whole = Gguf::from_owner("whole.gguf", again(&g)).unwrap();
        assert_eq!((whole.n_shards(), whole.tensors().len(), whole.metadata().len()), (1, 3, 1));
    }

    let renamed = dir.join("renamed.gguf");
    std::fs::copy(&paths[1], &renamed).unwrap();
    let expected = "renamed.gguf: shard 2 of 3 of a split model; its name must end in -00002-of-00003.gguf, so that the \
                    others can be found";
    assert!(Gguf::open(&renamed).unwrap_err().to_string().ends_with(expected));

    shard(dir, 1, 3, |w| _ = w.set("split.no", 2u16));
    assert_eq!(error(0), r#"m-00002-of-00003.gguf: key "split.no": expected 1, got 2"#);
    shard(dir, 1, 3, |w| _ = w.remove("split.count"));
    assert_eq!(error(0), r#"m-00002-of-00003.gguf: key "split.count" is missing"#);
    shard(dir, 1, 3, |w| _ = w.tensor("t0", Dtype::F32, &[1]).unwrap());
    assert_eq!(
        error(2),
        r#"m-00001-of-00003.gguf: key "split.tensors.count": expected 3 tensors in all shards, got 4"#
    );
    shard(dir, 0, 3, |w| _ = w.set("split.tensors.count", 4u16));
    assert_eq!(error(2), r#"m-00001-of-00003.gguf: tensor "t0" comes twice"#);
    shard(dir, 0, 3, |w| _ = w.set("split.no", 3u16));
    assert_eq!(error(0), r#"m-00001-of-00003.gguf: key "split.no": shard 3 of 3, counted from 0"#);
    std::fs::remove_file(&paths[1]).unwrap();
    assert_eq!(error(2), "m-00003-of-00003.gguf: shard m-00002-of-00003.gguf of the split model is missing");
}

#[test]
fn memory_is_bounded_by_the_file() {
    // Counts that the file could just hold, or that it claims to hold, over and over.
    let many = 20_000;
    let keys = (0..many).fold(Raw::header(3, 0, many), |raw, i| raw.key(&format!("{i:x}"), U8).bytes(&[1]));
    let strings = Raw::header(3, 0, 1).key("k", ARRAY).u32(STRING).u64(many).zeros(8 * many as usize);
    let arrays = Raw::header(3, 0, 1).key("k", ARRAY).u32(ARRAY).u64(many).zeros(12 * many as usize);
    let scalars = (0..many).fold(Raw::header(3, many, 0), |raw, i| raw.tensor(&format!("{i:x}"), &[], 24, 32 * i));
    let claims = (0..7).fold(Raw::header(3, 0, 1).key("k", ARRAY), |raw, _| raw.u32(ARRAY).u64(many / 2));
    let claims = claims.u32(STRING).u64(many / 2).zeros(12 * many as usize);
    let numbers = Raw::header(3, 0, 1).key("k", ARRAY).u32(10).u64(many).zeros(8 * many as usize - 1);
    for (what, raw) in [
        ("keys", keys),
        ("strings", strings),
        ("arrays", arrays),
        ("scalars", scalars.pad(32).zeros(32 * many as usize)),
        ("claims", claims),
        ("numbers", numbers),
    ] {
        let len = raw.0.len();
        let data = raw.0;
        let (_, used) = peak(|| Gguf::from_owner("x", data).map(drop));
        assert!(used <= allowed(len), "{what}: {used} bytes for a file of {len}");
    }
}

/// A metadata value of any type.
fn value() -> impl Strategy<Value = Value> {
    let array = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..9).prop_map(Array::U8),
        prop::collection::vec(any::<i16>(), 0..9).prop_map(Array::I16),
        prop::collection::vec(any::<u32>(), 0..9).prop_map(Array::U32),
        prop::collection::vec(any::<u32>().prop_map(f32::from_bits), 0..9).prop_map(Array::F32),
        prop::collection::vec(any::<bool>(), 0..9).prop_map(Array::Bool),
        prop::collection::vec(".{0,8}", 0..9).prop_map(Array::String),
        prop::collection::vec(any::<i64>(), 0..9).prop_map(Array::I64),
        prop::collection::vec(any::<u64>().prop_map(f64::from_bits), 0..9).prop_map(Array::F64),
    ];
    let array = array.prop_recursive(3, 12, 3, |inner| prop::collection::vec(inner, 0..3).prop_map(Array::Array));
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<u32>().prop_map(|v| Value::F32(f32::from_bits(v))),
        any::<bool>().prop_map(Value::Bool),
        ".{0,20}".prop_map(Value::String),
        array.prop_map(Value::Array),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        any::<u64>().prop_map(|v| Value::F64(f64::from_bits(v))),
    ]
}

/// Any file that a writer can write, and its bytes.
fn any_file() -> impl Strategy<Value = Vec<u8>> {
    let tensor = (0..Dtype::ALL.len(), prop::collection::vec(1usize..4, 0..5), 1usize..3);
    let metadata = prop::collection::btree_map("[a-z.]{1,12}", value(), 0..6);
    (metadata, prop::collection::vec(tensor, 0..6), 3u32..8).prop_map(|(metadata, tensors, alignment)| {
        let mut w = Writer::new();
        metadata.into_iter().for_each(|(key, value)| _ = w.set(&key, value));
        if alignment > 3 {
            w.set("general.alignment", 1u32 << alignment);
        }
        for (i, (dtype, mut shape, blocks)) in tensors.into_iter().enumerate() {
            let dtype = Dtype::ALL[dtype];
            shape.push(dtype.block().0 * blocks);
            w.tensor(&format!("t{i}"), dtype, &shape).unwrap();
        }
        file(&w)
    })
}

/// A change to a file's bytes. Places are taken modulo its length.
#[derive(Clone, Debug)]
enum Mutation {
    Flip(usize, u8),
    Truncate(usize),
    Extreme(usize, u64),
    Extreme32(usize, u32),
    Copy { from: usize, to: usize, n: usize },
    Insert(usize, Vec<u8>),
    Remove(usize, usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let extremes =
        vec![0, 1, 0x7fff_ffff, 0xffff_ffff, 1 << 32, 1 << 62, (1 << 63) - 1, 1 << 63, u64::MAX - 31, u64::MAX];
    // The header is where changes matter.
    let at = || prop_oneof![4usize..400, any::<usize>()];
    prop_oneof![
        4 => (at(), any::<u8>()).prop_map(|(at, bits)| Mutation::Flip(at, bits)),
        1 => at().prop_map(Mutation::Truncate),
        4 => (at(), prop::sample::select(extremes)).prop_map(|(at, v)| Mutation::Extreme(at, v)),
        2 => (at(), prop_oneof![0u32..45, any::<u32>()]).prop_map(|(at, v)| Mutation::Extreme32(at, v)),
        2 => (at(), at(), 1usize..100).prop_map(|(from, to, n)| Mutation::Copy { from, to, n }),
        1 => (at(), prop::collection::vec(any::<u8>(), 1..40)).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        1 => (at(), 1usize..40).prop_map(|(at, n)| Mutation::Remove(at, n)),
    ]
}

fn mutate(data: &mut Vec<u8>, mutation: &Mutation) {
    if data.is_empty() {
        return;
    }
    let len = data.len();
    let mut overwrite = |at: usize, bytes: &[u8]| {
        let at = at % len;
        let n = bytes.len().min(len - at);
        data[at..at + n].copy_from_slice(&bytes[..n]);
    };
    match mutation {
        Mutation::Flip(at, bits) => data[at % len] ^= bits,
        Mutation::Truncate(at) => data.truncate(at % len),
        Mutation::Extreme(at, v) => overwrite(*at, &v.to_le_bytes()),
        Mutation::Extreme32(at, v) => overwrite(*at, &v.to_le_bytes()),
        Mutation::Copy { from, to, n } => {
            let from = from % len;
            let bytes = data[from..(from + n).min(len)].to_vec();
            let to = to % len;
            let n = bytes.len().min(len - to);
            data[to..to + n].copy_from_slice(&bytes[..n]);
        }
        Mutation::Insert(at, bytes) => drop(data.splice(at % len..at % len, bytes.iter().copied())),
        Mutation::Remove(at, n) => drop(data.drain(at % len..(at % len + n).min(len))),
    }
}

/// Uses all that an opened file offers.
fn use_all(g: &Gguf) {
    let m = g.metadata();
    for (key, value) in m.iter() {
        assert_eq!(m.get(key).map(Value::type_name), Some(value.type_name()));
        let _ =
            (m.usize(key), m.f32(key), m.bool(key), m.str(key), m.strings(key), m.f32s(key), m.i64s(key), m.bools(key));
    }
    let mut sum = 0u64;
    for t in g.tensors() {
        assert_eq!(g.tensor(&t.name).map(|found| found.n_bytes), Some(t.n_bytes));
        sum += g.bytes(t).iter().map(|&b| u64::from(b)).sum::<u64>();
    }
    std::hint::black_box((sum, g.n_params(), g.n_bytes()));
    // What was accepted can be written, and then read again.
    let copy = Gguf::from_owner("copy", again(g)).expect("a file that mmq wrote");
    assert_eq!((copy.tensors().len(), copy.metadata().len()), (g.tensors().len(), m.len()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_file_round_trips(data in any_file()) {
        let g = Gguf::from_owner("any", data.clone()).unwrap();
        use_all(&g);
        prop_assert_eq!(again(&g), data);
    }

    #[test]
    fn mutated_files_are_read_or_refused(data in any_file(), mutations in prop::collection::vec(mutation(), 1..5)) {
        let mut data = data;
        mutations.iter().for_each(|m| mutate(&mut data, m));
        let len = data.len();
        let (result, used) = peak(|| Gguf::from_owner("any", data));
        prop_assert!(used <= allowed(len), "{} bytes for a file of {}", used, len);
        match result {
            Ok(g) => use_all(&g),
            Err(e) => {
                let message = e.to_string();
                prop_assert!(message.starts_with("any: ") && message.len() < 1000, "{}", message);
                prop_assert!(!message.chars().any(|c| c.is_control()), "{:?}", message);
            }
        }
    }

    #[test]
    fn noise_is_read_or_refused(version in 2u32..4, counts in (0u64..4, 0u64..4), noise in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(g) = Raw::header(version, counts.0, counts.1).bytes(&noise).read() {
            use_all(&g);
        }
    }
}

/// `mmq inspect`, which the library has only with its program.
#[cfg(feature = "cli")]
mod inspect {
    use super::*;
    use std::process::{Command, Output, Stdio};

    fn inspect(args: &[&str], path: &Path) -> Output {
        Command::new(env!("CARGO_BIN_EXE_mmq")).arg("inspect").args(args).arg(path).output().unwrap()
    }

    /// What it prints of `file()`, without the line that names the file.
    fn printed(args: &[&str], bytes: &[u8]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        std::fs::write(&path, bytes).unwrap();
        let output = inspect(args, &path);
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().filter(|line| !line.contains("m.gguf")).map(|line| format!("{}\n", line.trim_end())).collect()
    }

    #[test]
    fn table() {
        let mut w = Writer::new();
        w.set("general.architecture", "none\x1b[31m").set("eps", 1e-5f32).set("n", (0..10).collect::<Vec<u32>>());
        w.tensor("a", Dtype::Q4_0, &[64, 32]).unwrap().tensor("b", Dtype::F32, &[5]).unwrap();
        let expected = r#"
format        GGUF version 3, 1.4 kB
name          (none)
architecture  "none\u{1b}[31m"
parameters    2.1 k in 2 tensors
size          1.2 kB, 4.57 bits per weight
types         Q4_0         1 tensors    2.0 k weights    1.2 kB
              F32          1 tensors        5 weights      20 B

metadata (3 keys)
  general.architecture  string   "none\u{1b}[31m"
  eps                   f32      1e-5
  n                     u32[]    [0, 1, 2, 3, 4, 5, 6, 7, … 10 in all]

tensors (2)
  a  Q4_0    [64, 32]                 1.2 kB
  b  F32     [5]                        20 B
"#;
        let text = printed(&["--tensors"], &file(&w));
        let (verdict, rest): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with("mmq "));
        assert_eq!(rest, expected.trim().lines().collect::<Vec<_>>());
        assert!(verdict[0].starts_with("mmq           cannot run it: "), "{verdict:?}");
        assert!(!text.contains('\x1b'));
        assert!(printed(&["--full"], &file(&w)).contains("[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]"));
    }

    #[test]
    fn json() {
        let json: serde_json::Value = serde_json::from_str(&printed(&["--json", "--full"], &file(&sample()))).unwrap();
        assert_eq!(json["architecture"], "sample");
        assert_eq!(json["n_params"], 460);
        assert_eq!(json["runs"], false);
        assert_eq!(json["metadata"]["f32"]["value"], 1.5);
        assert_eq!(json["metadata"]["u64"]["value"], u64::MAX);
        assert_eq!(json["metadata"]["tokens"]["type"], "array of string");
        assert_eq!(json["metadata"]["nested"]["value"][0][1], 2);
        assert_eq!(json["tensors"][5]["shape"], serde_json::json!([2, 3, 1, 2, 2]));
        let bare: serde_json::Value = serde_json::from_str(&printed(&["--json"], &file(&Writer::new()))).unwrap();
        assert_eq!(bare["verdict"], "holds no tensors");
        assert_eq!(bare["bits_per_weight"], serde_json::Value::Null);
    }

    #[test]
    fn every_fixture() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let files = std::fs::read_dir(fixtures).unwrap().map(|entry| entry.unwrap().path());
        for path in files.filter(|path| path.extension().is_some_and(|e| e == "gguf")) {
            let output = inspect(&["--tensors"], &path);
            assert!(output.status.success() && output.stderr.is_empty(), "{}: {output:?}", path.display());
            let g = Gguf::open(&path).unwrap();
            assert!(again(&g) == std::fs::read(&path).unwrap(), "{} round-trips", path.display());
        }
    }

    #[test]
    fn refuses_with_status_1_and_survives_a_closed_pipe() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("page.gguf");
        std::fs::write(&path, "<html>").unwrap();
        let output = inspect(&[], &path);
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty());
        let expected = "page.gguf: not a GGUF file: a web page, perhaps an error or a login in place of the download\n";
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.starts_with("error: ") && said.ends_with(expected), "{said}");

        // More than any pipe holds, to nobody.
        let mut w = Writer::new();
        w.set("k", vec![0u32; 1 << 20]);
        std::fs::write(&path, file(&w)).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_mmq"));
        let child = child.args(["inspect", "--full"]).arg(&path).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = child.spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    }
}
