//! Any bytes as a GGUF file: read or refused, never a panic; what is read can be used and written, and a tokenizer or
//! model in it is loaded or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mmq::architectures;
use mmq::gguf::{Gguf, Writer};
use mmq::text::Tokenizer;

fuzz_target!(|data: &[u8]| {
    let gguf = match Gguf::from_owner("fuzz", data.to_vec()) {
        Ok(gguf) => gguf,
        Err(error) => return assert!(error.to_string().starts_with("fuzz: "), "{error}"),
    };
    let m = gguf.metadata();
    for (key, _) in m.iter() {
        let _ = (m.usize(key), m.f32(key), m.bool(key), m.str(key), m.strings(key), m.f32s(key), m.i64s(key), m.bools(key));
    }
    if let Ok(tokenizer) = Tokenizer::from_gguf(m) {
        for text in ["", "Hello, wörld <s>\n 12"] {
            let _ = tokenizer.decode(&tokenizer.encode(text, true, true), true);
        }
    }
    let _ = architectures::check(&gguf);
    let mut writer = Writer::like(&gguf);
    for t in gguf.tensors() {
        assert_eq!(gguf.bytes(t).len(), t.n_bytes);
        writer.tensor(&t.name, t.dtype, &t.shape).expect("the reader accepted it");
    }
    let mut written = Vec::new();
    let copy = writer.write_to("copy", &mut written, |t, sink| {
        let t = gguf.tensor(&t.name).expect("its own tensor");
        sink.put(&gguf.bytes(t))
    });
    copy.expect("what was read can be written");
    let again = Gguf::from_owner("copy", written).expect("what was written can be read");
    assert_eq!(again.tensors().len(), gguf.tensors().len());
    assert_eq!(again.metadata().len(), gguf.metadata().len());
});
