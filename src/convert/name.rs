//! What a model is called: `general.name` and its parts, from its card and the name of its folder or of its repository, as
//! llama.cpp's converter takes names such as `Llama-3.2-1B-Instruct` apart.

use super::card::Card;
use super::config::Json;
use crate::gguf::Value;
use std::path::Path;

/// What a part of a name says.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Basename,
    SizeLabel,
    Finetune,
    Version,
    Type,
}

/// A name taken apart.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Name {
    pub name: Option<String>,
    pub organization: Option<String>,
    basename: Option<String>,
    finetune: Option<String>,
    pub version: Option<String>,
    size_label: Option<String>,
}

/// The last part of a path, also of `.`.
pub(super) fn folder(dir: &Path) -> String {
    let real = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
    real.file_name().map_or_else(|| "model".to_string(), |name| name.to_string_lossy().into_owned())
}

/// `general.name` and its kin for the model of `dir` with `n_params` weights, and what its card says besides; `given` is what the
/// user calls it.
pub(super) fn keys(dir: &Path, json: &Json, given: Option<&str>, n_params: u64) -> crate::Result<Vec<(String, Value)>> {
    let card = Card::read(dir)?;
    let text = |key: &str, more: &[&str]| card.text(&[&[key, &format!("model_{key}")], more].concat());
    let mut name = Name {
        name: text("name", &[]),
        organization: text("organization", &[]),
        basename: text("basename", &["model_type"]),
        finetune: text("finetune", &[]),
        version: text("version", &[]),
        size_label: text("size_label", &[]),
    };
    // A repository's name, and no path on somebody's computer.
    let repository = json.get("_name_or_path").and_then(|v| v.as_str());
    let repository = repository.filter(|path| path.matches('/').count() <= 1 && !path.is_empty());
    for id in repository.map(str::to_string).into_iter().chain([folder(dir)]) {
        let found = take_apart(&id, n_params);
        let full = found.name.as_deref().map(title);
        name.name = name.name.or(full);
        name.organization = name.organization.or(found.organization.as_deref().map(title));
        name.basename = name.basename.or(found.basename);
        name.finetune = name.finetune.or(found.finetune);
        name.version = name.version.or(found.version);
        name.size_label = name.size_label.or(found.size_label);
    }
    let name = Name {
        name: given.map(str::to_string).or(name.name),
        size_label: name.size_label.or_else(|| Some(rounded(n_params))),
        ..name
    };
    let entries = [
        ("name", name.name),
        ("author", text("author", &["model_creator"])),
        ("version", name.version),
        ("organization", name.organization),
        ("finetune", name.finetune),
        ("basename", name.basename),
        ("description", text("description", &[])),
        ("size_label", name.size_label),
    ];
    let mut keys: Vec<(String, Value)> =
        entries.into_iter().filter_map(|(key, value)| Some((format!("general.{key}"), value?.into()))).collect();
    keys.extend(card.keys(n_params));
    Ok(keys)
}

/// How a model writes its answers, from `generation_config.json`.
pub(super) fn sampling(generation: &Json) -> crate::Result<Vec<(String, Value)>> {
    let mut keys: Vec<(String, Value)> = Vec::new();
    if let Some(k) = generation.i64("top_k")?.and_then(|k| i32::try_from(k).ok()) {
        keys.push(("general.sampling.top_k".into(), k.into()));
    }
    for (from, to) in
        [("top_p", "top_p"), ("min_p", "min_p"), ("temperature", "temp"), ("repetition_penalty", "penalty_repeat")]
    {
        if let Some(value) = generation.f64(from)? {
            keys.push((format!("general.sampling.{to}"), (value as f32).into()));
        }
    }
    Ok(keys)
}

/// A number of weights in two digits: `135M`, `1.1B`.
fn rounded(n: u64) -> String {
    let (n, unit) = match n {
        0..=1_000_000 => (n as f64 * 1e-3, "K"),
        1_000_001..=1_000_000_000 => (n as f64 * 1e-6, "M"),
        1_000_000_001..=1_000_000_000_000 => (n as f64 * 1e-9, "B"),
        _ => (n as f64 * 1e-12, "T"),
    };
    let whole = n.round_ties_even() as u64;
    let digits = if whole == 0 { 0 } else { whole.to_string().len() };
    format!("{n:.*}{unit}", 2usize.saturating_sub(digits))
}

/// Words apart, with capitals unless they have some or are versions.
pub(super) fn title(id: &str) -> String {
    let word = |word: &str| {
        let lower = word.chars().any(char::is_lowercase) && !word.chars().any(char::is_uppercase);
        let version = word.strip_prefix('v').is_some_and(is_number) || word.starts_with(|c: char| c.is_ascii_digit());
        if !lower || version {
            return word.to_string();
        }
        // A letter behind what is no letter is a capital.
        let mut before = ' ';
        let capitals = word.chars().map(|c| {
            let upper = !std::mem::replace(&mut before, c).is_alphabetic();
            if upper { c.to_uppercase().to_string() } else { c.to_string() }
        });
        capitals.collect()
    };
    id.replace('-', " ").split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}

/// `1`, `1.5`, `0.1.2`
fn is_number(text: &str) -> bool {
    text.split('.').all(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// A folder's or a repository's name taken apart.
pub(super) fn take_apart(id: &str, n_params: u64) -> Name {
    if id.contains(' ') {
        return Name { name: Some(id.to_string()), ..Name::default() };
    }
    let (organization, full) = match id.split_once('/') {
        Some((organization, full)) => (Some(organization).filter(|o| !o.starts_with('.')), full),
        None => (None, id),
    };
    let mut parts: Vec<(String, Vec<Part>)> =
        full.split('-').filter(|part| !part.is_empty()).map(|part| (part.to_string(), Vec::new())).collect();
    for (i, (part, kinds)) in parts.iter_mut().enumerate() {
        let lower = part.to_lowercase();
        let number = lower.strip_prefix("iter").or_else(|| lower.strip_prefix('v')).unwrap_or(&lower);
        if is_number(number) {
            kinds.push(Part::Version);
        } else if is_type(&lower) {
            kinds.push(Part::Type);
            *part = part.to_uppercase();
        } else if i > 0 && is_size(&lower) {
            let (label, kind) = size(part, n_params);
            kinds.push(kind);
            *part = label;
        } else if i > 0 && ["chat", "instruct", "vision", "lora"].contains(&lower.as_str()) {
            kinds.push(Part::Finetune);
        }
    }
    // "small" says nothing where there is a number.
    let is_label = |kinds: &[Part]| kinds.contains(&Part::SizeLabel);
    if parts.iter().any(|(part, kinds)| is_label(kinds) && part.contains(|c: char| c.is_ascii_digit())) {
        for (part, kinds) in &mut parts {
            if part.chars().all(char::is_alphabetic) {
                kinds.retain(|kind| *kind != Part::SizeLabel);
            }
        }
    }
    let mut at_start = true;
    for (part, kinds) in &mut parts {
        let word = kinds.is_empty() && part.starts_with(char::is_alphabetic);
        if at_start && (word || kinds.contains(&Part::Version)) {
            kinds.push(Part::Basename);
        } else {
            at_start = false;
            if kinds.is_empty() {
                kinds.push(Part::Finetune);
            }
        }
    }
    for (_, kinds) in parts.iter_mut().rev() {
        if !kinds.contains(&Part::Basename) || kinds.len() < 2 {
            break;
        }
        kinds.retain(|kind| *kind != Part::Basename);
    }
    let join = |wanted: &dyn Fn(&[Part]) -> bool| {
        let mut found: Vec<&str> = Vec::new();
        found.extend(parts.iter().filter(|(_, kinds)| wanted(kinds)).map(|(part, _)| part.as_str()));
        Some(found.join("-")).filter(|joined| !joined.is_empty())
    };
    let version = join(&|kinds| kinds.contains(&Part::Version) && !kinds.contains(&Part::Basename));
    let (finetune, size_label) = (join(&|kinds| kinds.contains(&Part::Finetune)), join(&is_label));
    let told = version.is_some() || finetune.is_some() || size_label.is_some();
    Name {
        name: Some(full.to_string()),
        organization: organization.map(str::to_string),
        basename: join(&|kinds| kinds.contains(&Part::Basename)).filter(|_| told),
        finetune,
        version,
        size_label,
    }
}

/// `q4_0`, `iq2_xs`, `fp16`, `bf16`
fn is_type(lower: &str) -> bool {
    let quant = lower.strip_prefix('i').unwrap_or(lower).strip_prefix('q').is_some_and(|rest| {
        let mut pieces = rest.split('_');
        let one = |piece: &str| piece.chars().count() == 1;
        pieces.next().is_some_and(|digit| one(digit) && digit.bytes().all(|b| b.is_ascii_digit()))
            && pieces.all(|piece| one(piece) && piece.bytes().all(|b| b.is_ascii_alphanumeric()))
    });
    quant || ["16", "32", "f16", "f32", "fp16", "fp32", "bf16", "bf32", "bfp16", "bfp32"].contains(&lower)
}

/// `7b`, `1.1B`, `8x7B`, `small`
fn is_size(lower: &str) -> bool {
    if ["small", "mini", "medium", "large", "xl", "xxl"].contains(&lower) {
        return true;
    }
    let units = ['k', 'm', 'b', 't'];
    let trimmed = match lower.strip_suffix(|c: char| c.is_ascii_digit()) {
        Some(rest) if rest.ends_with(units) => rest,
        _ => lower,
    };
    let Some(number) = trimmed.strip_suffix(units) else { return false };
    let number = match number.split_once('x') {
        Some((n, rest)) if is_number(n) && !n.contains('.') => rest,
        Some(_) => return false,
        None => number.strip_prefix('a').unwrap_or(number),
    };
    let number = number.replace('_', ".");
    is_number(&number) && number.matches('.').count() <= 1
}

/// A size as it is written, and whether it is one: it may be the length of the context.
fn size(part: &str, n_params: u64) -> (String, Part) {
    let mut label = part.replace('_', ".");
    // bloom-7b1 is 7.1B.
    if let [.., unit, digit] = *label.as_bytes()
        && digit.is_ascii_digit()
    {
        label.truncate(label.len() - 2);
        label = format!("{label}.{}{}", char::from(digit), char::from(unit));
    }
    let Some(unit) = label.pop() else { return (part.to_string(), Part::SizeLabel) };
    let ends_in_digit = label.ends_with(|c: char| c.is_ascii_digit());
    let unit = if ends_in_digit { unit.to_ascii_uppercase() } else { unit };
    let power = "KMBT".find(unit).map_or(0, |i| i + 1);
    if n_params != 0
        && let Ok(n) = label.parse::<f64>()
        && (n * 1000f64.powi(power as i32) - n_params as f64).abs() > (7 * n_params / 8) as f64
    {
        return (format!("{label}{}", unit.to_ascii_lowercase()), Part::Finetune);
    }
    (format!("{label}{unit}"), Part::SizeLabel)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(id: &str, n_params: u64) -> [Option<String>; 5] {
        let Name { organization, basename, finetune, version, size_label, .. } = take_apart(id, n_params);
        [organization, basename, finetune, version, size_label]
    }

    #[test]
    fn names_are_taken_apart_as_llama_cpp_does() {
        let some = |text: &str| Some(text.to_string()).filter(|t| !t.is_empty());
        for (id, n, expected) in [
            ("llava-1.5-7b-hf", 7_000_000_000, ["", "llava-1.5", "hf", "", "7B"]),
            ("meta-llama/Llama-3.2-1B-Instruct", 1_200_000_000, ["meta-llama", "Llama-3.2", "Instruct", "", "1B"]),
            ("Mistral-7B-Instruct-v0.3", 7_200_000_000, ["", "Mistral", "Instruct", "v0.3", "7B"]),
            ("Yarn-Llama-2-7b-128k", 6_700_000_000, ["", "Yarn-Llama-2", "128k", "", "7B"]),
            ("bloom-7b1", 7_100_000_000, ["", "bloom", "", "", "7.1B"]),
            ("Mixtral-8x7B-v0.1", 0, ["", "Mixtral", "", "v0.1", "8x7B"]),
            ("plain", 7, ["", "", "", "", ""]),
            ("llava-v1.6-mistral-7b", 7_200_000_000, ["", "llava-v1.6-mistral", "", "", "7B"]),
            ("SmolLM2-135M-Instruct-Q4_K_M", 135_000_000, ["", "SmolLM2", "Instruct", "", "135M"]),
            ("TinyLlama-1.1B-Chat-v1.0", 1_100_000_000, ["", "TinyLlama", "Chat", "v1.0", "1.1B"]),
            ("vicuna-13b-v1.5-16k", 13_000_000_000, ["", "vicuna", "16k", "v1.5", "13B"]),
            ("Hermes-2-Pro-Mistral-small-7B", 7_000_000_000, ["", "Hermes-2-Pro-Mistral-small", "", "", "7B"]),
        ] {
            assert_eq!(parts(id, n), expected.map(some), "{id}");
        }
    }

    #[test]
    fn sizes_have_two_digits() {
        for (n, text) in
            [(134_515_008, "135M"), (1_100_048_384, "1.1B"), (47_000, "47K"), (600, "0.6K"), (9_960, "10K")]
        {
            assert_eq!(rounded(n), text);
        }
    }

    #[test]
    fn titles() {
        assert_eq!(title("meta-llama"), "Meta Llama");
        assert_eq!(title("llava-v1.5-7b-HF"), "Llava v1.5 7b HF");
    }
}
