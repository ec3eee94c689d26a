//! `mmq inspect`: what a GGUF file holds and what mmq can do with it.

use super::{printable, printed, scaled};
use crate::gguf::{Array, Gguf, TensorInfo, Value};
use crate::{Dtype, Result, architectures};
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::io::Write as _;
use std::path::PathBuf;

/// Shows what a GGUF file holds and what mmq can do with it.
#[derive(clap::Args)]
pub struct Args {
    /// The file; of a split model, any shard.
    file: PathBuf,
    /// Also lists the tensors: name, type, shape (outermost first), size.
    #[arg(long)]
    tensors: bool,
    /// Prints one JSON object with everything, tensors too.
    #[arg(long)]
    json: bool,
    /// Does not shorten long arrays and texts.
    #[arg(long)]
    full: bool,
}

/// Elements of an array that are shown unless all are asked for.
const SHORT_ARRAY: usize = 8;
/// Characters of a text that are shown unless all are asked for.
const SHORT_TEXT: usize = 72;

/// Runs `mmq inspect`.
pub fn run(args: &Args) -> Result<()> {
    let gguf = Gguf::open(&args.file)?;
    let text =
        if args.json { format!("{:#}\n", as_json(&gguf, args.full)) } else { as_table(&gguf, args.tensors, args.full) };
    printed(std::io::stdout().lock().write_all(text.as_bytes()))
}

/// What mmq can do with a file.
struct Verdict {
    runs: bool,
    words: String,
}

fn verdict(gguf: &Gguf) -> Verdict {
    if gguf.tensors().is_empty() {
        let words = match gguf.metadata().get("tokenizer.ggml.model") {
            Some(_) => "holds a vocabulary but no tensors: `mmq tokenize` can use it, nothing can run",
            None => "holds no tensors",
        };
        return Verdict { runs: false, words: words.to_string() };
    }
    match architectures::check(gguf) {
        Ok(words) => Verdict { runs: true, words },
        Err(error) => {
            let message = error.to_string();
            let message = message.strip_prefix(&format!("{}: ", gguf.name())).unwrap_or(&message);
            Verdict { runs: false, words: format!("cannot run it: {}", printable(message).replace('\n', " ")) }
        }
    }
}

/// Tensors, weights and bytes of each type that the file has.
fn types(gguf: &Gguf) -> Vec<(Dtype, usize, u64, u64)> {
    let mut types = BTreeMap::<Dtype, (usize, u64, u64)>::new();
    for t in gguf.tensors() {
        let (n, weights, bytes) = types.entry(t.dtype).or_default();
        *n += 1;
        *weights += t.n_elements() as u64;
        *bytes += t.n_bytes as u64;
    }
    let mut types: Vec<_> = types.into_iter().map(|(dtype, (n, weights, bytes))| (dtype, n, weights, bytes)).collect();
    types.sort_by_key(|&(.., bytes)| std::cmp::Reverse(bytes));
    types
}

/// Bits of storage for each weight; `None` without weights.
fn bits_per_weight(gguf: &Gguf) -> Option<f64> {
    let n = gguf.n_params();
    (n > 0).then(|| gguf.n_bytes() as f64 * 8.0 / n as f64)
}

fn as_table(gguf: &Gguf, tensors: bool, full: bool) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: &dyn Display| {
        let _ = writeln!(out, "{name:<14}{value}");
    };
    let text = |key: &str| match gguf.metadata().get(key) {
        Some(Value::String(v)) => shorten(v, full),
        Some(other) => format!("({}, expected string)", other.type_name()),
        None => "(none)".to_string(),
    };
    let shards = match gguf.n_shards() {
        1 => String::new(),
        n => format!(" in {n} shards"),
    };
    line("file", &gguf.name());
    line("format", &format_args!("GGUF version {}, {}B{shards}", gguf.version(), scaled(gguf.file_bytes())));
    line("name", &text("general.name"));
    line("architecture", &text("general.architecture"));
    if let Some(layout) = gguf.packed() {
        let n = gguf.tensors().iter().filter(|t| t.layout == mmq_kernels::Layout::Panels).count();
        line("packed", &format_args!("{}, {n} tensors interleaved: only mmq can run it", shorten(layout, full)));
    }
    line("parameters", &format_args!("{}in {} tensors", spaced(scaled(gguf.n_params())), gguf.tensors().len()));
    if let Some(bits) = bits_per_weight(gguf) {
        line("size", &format_args!("{}B, {bits:.2} bits per weight", scaled(gguf.n_bytes())));
    }
    for (i, (dtype, n, weights, bytes)) in types(gguf).into_iter().enumerate() {
        let (weights, bytes) = (spaced(scaled(weights)), scaled(bytes) + "B");
        let name = if i == 0 { "types" } else { "" };
        line(name, &format_args!("{:<8} {n:>5} tensors {weights:>9}weights {bytes:>9}", dtype.name()));
    }
    line("mmq", &verdict(gguf).words);

    let _ = writeln!(out, "\nmetadata ({} keys)", gguf.metadata().len());
    let keys = gguf.metadata().iter().map(|(key, value)| (shorten_name(key), value)).collect::<Vec<_>>();
    let width = keys.iter().map(|(key, _)| key.chars().count()).max().unwrap_or(0).min(56);
    for (key, value) in keys {
        let _ = writeln!(out, "  {key:<width$}  {:<8} {}", kind(value), show(value, full));
    }
    if tensors {
        let _ = writeln!(out, "\ntensors ({})", gguf.tensors().len());
        let names: Vec<_> = gguf.tensors().iter().map(|t| (shorten_name(&t.name), t)).collect();
        let width = names.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).min(56);
        for (name, t) in names {
            let shape = format!("{:?}", t.shape);
            let _ =
                writeln!(out, "  {name:<width$}  {:<7} {shape:<20} {:>9}B", t.dtype.name(), scaled(t.n_bytes as u64));
        }
    }
    out
}

/// A number from [`scaled`], with the space that words after it need.
fn spaced(number: String) -> String {
    if number.ends_with(' ') { number } else { number + " " }
}

/// The type of a value; of an array, that of its elements.
fn kind(value: &Value) -> String {
    match value {
        Value::Array(array) => format!("{}[]", array.element_type_name()),
        other => other.type_name(),
    }
}

/// A key or a tensor's name, without quotes unless it holds what would upset a terminal.
fn shorten_name(name: &str) -> String {
    if name.len() <= 64 && !name.chars().any(char::is_control) { name.to_string() } else { shorten(name, false) }
}

/// `text` in quotes, with control characters escaped, cut unless `full`.
fn shorten(text: &str, full: bool) -> String {
    match text.char_indices().nth(SHORT_TEXT) {
        Some((end, _)) if !full => format!("{:?}… ({} bytes)", &text[..end], text.len()),
        _ => format!("{text:?}"),
    }
}

/// A value on one line.
fn show(value: &Value, full: bool) -> String {
    match value {
        Value::U8(v) => v.to_string(),
        Value::I8(v) => v.to_string(),
        Value::U16(v) => v.to_string(),
        Value::I16(v) => v.to_string(),
        Value::U32(v) => v.to_string(),
        Value::I32(v) => v.to_string(),
        Value::F32(v) => format!("{v:?}"),
        Value::Bool(v) => v.to_string(),
        Value::String(v) => shorten(v, full),
        Value::Array(v) => show_array(v, full),
        Value::U64(v) => v.to_string(),
        Value::I64(v) => v.to_string(),
        Value::F64(v) => format!("{v:?}"),
    }
}

fn show_array(array: &Array, full: bool) -> String {
    fn list<T>(v: &[T], full: bool, show: impl Fn(&T) -> String) -> String {
        let n = if full { v.len() } else { v.len().min(SHORT_ARRAY) };
        let shown = v[..n].iter().map(show).collect::<Vec<_>>().join(", ");
        if n < v.len() { format!("[{shown}, … {} in all]", v.len()) } else { format!("[{shown}]") }
    }
    match array {
        Array::U8(v) => list(v, full, u8::to_string),
        Array::I8(v) => list(v, full, i8::to_string),
        Array::U16(v) => list(v, full, u16::to_string),
        Array::I16(v) => list(v, full, i16::to_string),
        Array::U32(v) => list(v, full, u32::to_string),
        Array::I32(v) => list(v, full, i32::to_string),
        Array::F32(v) => list(v, full, |v| format!("{v:?}")),
        Array::Bool(v) => list(v, full, bool::to_string),
        Array::String(v) => list(v, full, |v| shorten(v, full)),
        Array::Array(v) => list(v, full, |v| show_array(v, full)),
        Array::U64(v) => list(v, full, u64::to_string),
        Array::I64(v) => list(v, full, i64::to_string),
        Array::F64(v) => list(v, full, |v| format!("{v:?}")),
    }
}

fn as_json(gguf: &Gguf, full: bool) -> Json {
    let verdict = verdict(gguf);
    let metadata = gguf.metadata().iter().map(|(key, value)| (key.to_string(), json_value(value, full)));
    json!({
        "file": gguf.name(),
        "version": gguf.version(),
        "n_shards": gguf.n_shards(),
        "file_bytes": gguf.file_bytes(),
        "name": gguf.metadata().str("general.name").ok().flatten(),
        "architecture": gguf.metadata().str("general.architecture").ok().flatten(),
        "packed": gguf.packed(),
        "n_params": gguf.n_params(),
        "n_bytes": gguf.n_bytes(),
        "bits_per_weight": bits_per_weight(gguf),
        "types": types(gguf).into_iter().map(|(dtype, n, weights, bytes)| json!({
            "type": dtype.name(), "n_tensors": n, "n_params": weights, "n_bytes": bytes,
        })).collect::<Vec<_>>(),
        "runs": verdict.runs,
        "verdict": verdict.words,
        "metadata": metadata.collect::<Map<_, _>>(),
        "tensors": gguf.tensors().iter().map(json_tensor).collect::<Vec<_>>(),
    })
}

fn json_tensor(t: &TensorInfo) -> Json {
    json!({ "name": t.name, "type": t.dtype.name(), "shape": t.shape, "n_bytes": t.n_bytes })
}

/// A value with its type; of an array also its length, since its elements may be only the first ones.
fn json_value(value: &Value, full: bool) -> Json {
    let plain = match value {
        Value::U8(v) => json!(v),
        Value::I8(v) => json!(v),
        Value::U16(v) => json!(v),
        Value::I16(v) => json!(v),
        Value::U32(v) => json!(v),
        Value::I32(v) => json!(v),
        Value::F32(v) => json_f32(*v),
        Value::Bool(v) => json!(v),
        Value::String(v) => json!(v),
        Value::Array(v) => return json!({ "type": value.type_name(), "len": v.len(), "value": json_array(v, full) }),
        Value::U64(v) => json!(v),
        Value::I64(v) => json!(v),
        Value::F64(v) => json_f64(*v),
    };
    json!({ "type": value.type_name(), "value": plain })
}

fn json_array(array: &Array, full: bool) -> Json {
    fn list<T>(v: &[T], full: bool, json: impl Fn(&T) -> Json) -> Json {
        let n = if full { v.len() } else { v.len().min(SHORT_ARRAY) };
        Json::Array(v[..n].iter().map(json).collect())
    }
    match array {
        Array::U8(v) => list(v, full, |v| json!(v)),
        Array::I8(v) => list(v, full, |v| json!(v)),
        Array::U16(v) => list(v, full, |v| json!(v)),
        Array::I16(v) => list(v, full, |v| json!(v)),
        Array::U32(v) => list(v, full, |v| json!(v)),
        Array::I32(v) => list(v, full, |v| json!(v)),
        Array::F32(v) => list(v, full, |v| json_f32(*v)),
        Array::Bool(v) => list(v, full, |v| json!(v)),
        Array::String(v) => list(v, full, |v| json!(v)),
        Array::Array(v) => list(v, full, |v| json_array(v, full)),
        Array::U64(v) => list(v, full, |v| json!(v)),
        Array::I64(v) => list(v, full, |v| json!(v)),
        Array::F64(v) => list(v, full, |v| json_f64(*v)),
    }
}

/// The shortest number that reads back as `v`: 1e-5, not 0.00000999999974.
fn json_f32(v: f32) -> Json {
    json_f64(v.to_string().parse().unwrap_or(f64::from(v)))
}

/// A number; as text if JSON has no number for it.
fn json_f64(v: f64) -> Json {
    if v.is_finite() { json!(v) } else { json!(v.to_string()) }
}
