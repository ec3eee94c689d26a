//! Model cards: what the front matter of `README.md` says about a model, as far as GGUF has keys for it. The same cards give the
//! same keys as in llama.cpp's converter.
//!
//! Of YAML it reads what such front matter is made of: scalars, plain or in quotes, over several lines after `|` and `>`; lists
//! with dashes or in brackets; lists of maps of scalars. What else there may be, in keys that say nothing here, is passed over.

use super::config::read_text;
use super::name::{take_apart, title};
use crate::Result;
use crate::gguf::Value;
use std::path::Path;

/// A value of the front matter.
#[derive(Clone, Debug, PartialEq)]
enum Yaml {
    Scalar(String),
    List(Vec<Yaml>),
    Map(Vec<(String, String)>),
}

/// The front matter of a model card: its top-level keys.
#[derive(Clone, Debug, Default)]
pub(super) struct Card(Vec<(String, Yaml)>);

impl Card {
    /// That of the model in `dir`; an empty one if it has none.
    pub fn read(dir: &Path) -> Result<Card> {
        let path = dir.join("README.md");
        if !path.is_file() {
            return Ok(Card::default());
        }
        Ok(Card::parse(&read_text(&path)?))
    }

    fn parse(text: &str) -> Card {
        let mut lines = text.trim_start_matches('\u{feff}').lines();
        if lines.next() != Some("---") {
            return Card::default();
        }
        let lines: Vec<String> = lines.take_while(|line| *line != "---").map(|line| line.replace('\t', "  ")).collect();
        let mut keys = Vec::new();
        let mut at = 0;
        while at < lines.len() {
            let line = &lines[at];
            at += 1;
            let Some((key, inline)) = pair(line).filter(|_| !line.starts_with([' ', '-', '#'])) else { continue };
            let inside = |line: &String| line.is_empty() || line.starts_with([' ', '-', '#']);
            let block = &lines[at..at + lines[at..].iter().take_while(|line| inside(line)).count()];
            at += block.len();
            if let Some(value) = value(&inline, block) {
                keys.push((key, value));
            }
        }
        Card(keys)
    }

    fn get(&self, key: &str) -> Option<&Yaml> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// The first of `keys` that is a scalar.
    pub fn text(&self, keys: &[&str]) -> Option<String> {
        keys.iter().find_map(|key| match self.get(key) {
            Some(Yaml::Scalar(text)) => Some(text.clone()),
            _ => None,
        })
    }

    /// The scalars that `keys` list, those of all of them.
    fn texts(&self, keys: &[&str]) -> Vec<String> {
        let values = keys.iter().filter_map(|key| self.get(key));
        values.flat_map(Yaml::items).filter_map(|item| item.scalar().map(str::to_string)).collect()
    }

    /// `general.*` but for the parts of the name: license, where the model comes from, what it was made of, tags and languages.
    pub fn keys(&self, n_params: u64) -> Vec<(String, Value)> {
        let mut keys: Vec<(String, Value)> = Vec::new();
        let license = self.texts(&["license"]);
        if !license.is_empty() {
            keys.push(("general.license".into(), license.join(",").into()));
        }
        for (key, from) in [
            ("license.name", &["license_name"] as &[&str]),
            ("license.link", &["license_link"]),
            ("source.url", &["url", "model_url"]),
            ("source.doi", &["doi", "model_doi"]),
            ("source.uuid", &["uuid", "model_uuid"]),
            ("source.repo_url", &["repo_url", "model_repo_url"]),
        ] {
            keys.extend(self.text(from).map(|text| (format!("general.{key}"), text.into())));
        }
        for (what, from) in [
            ("base_model", ["base_model", "base_models", "base_model_sources"]),
            ("dataset", ["datasets", "dataset", "dataset_sources"]),
        ] {
            let Some(value) = from.iter().find_map(|key| self.get(key)) else { continue };
            let items = value.items();
            keys.push((format!("general.{what}.count"), (items.len() as u32).into()));
            for (i, item) in items.iter().enumerate() {
                let entries = source(item, n_params);
                keys.extend(entries.into_iter().map(|(key, text)| (format!("general.{what}.{i}.{key}"), text.into())));
            }
        }
        for (key, from) in [("tags", ["tags", "pipeline_tag"]), ("languages", ["languages", "language"])] {
            let texts = self.texts(&from);
            if !texts.is_empty() {
                keys.push((format!("general.{key}"), texts.into()));
            }
        }
        keys
    }
}

impl Yaml {
    fn scalar(&self) -> Option<&str> {
        match self {
            Yaml::Scalar(text) => Some(text),
            _ => None,
        }
    }

    /// The items of a list; anything else is one.
    fn items(&self) -> &[Yaml] {
        match self {
            Yaml::List(items) => items,
            one => std::slice::from_ref(one),
        }
    }
}

/// What is said of a model or a data set that a model was made of: a map of it, or its repository's name or address taken apart.
fn source(item: &Yaml, n_params: u64) -> Vec<(String, String)> {
    const KEYS: [&str; 9] =
        ["name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url"];
    let id = match item {
        Yaml::Scalar(id) => id,
        Yaml::Map(entries) => {
            let entry = |key: &str| entries.iter().find(|(name, _)| name == key).cloned();
            return KEYS.iter().filter_map(|key| entry(key)).collect();
        }
        Yaml::List(_) => return Vec::new(),
    };
    let is_address = ["http://", "https://", "ssh://"].iter().any(|scheme| id.starts_with(scheme));
    let of_hub = ["https://huggingface.co/", "http://huggingface.co/"].iter().find_map(|hub| id.strip_prefix(hub));
    let of_hub = of_hub.filter(|path| path.split('/').filter(|part| !part.is_empty()).count() == 2);
    let of_hub = of_hub.filter(|path| path.matches('/').count() == 1);
    let name = match (is_address, of_hub) {
        (false, _) => take_apart(id, n_params),
        (true, Some(path)) => take_apart(path, n_params),
        (true, None) => return vec![("repo_url".into(), id.clone())],
    };
    let repo_url = if is_address {
        Some(id.clone())
    } else {
        let (organization, name) = (name.organization.as_ref(), name.name.as_ref());
        organization.zip(name).map(|(organization, name)| format!("https://huggingface.co/{organization}/{name}"))
    };
    let entries = [
        ("name", name.name.as_deref().map(title)),
        ("version", name.version),
        ("organization", name.organization.as_deref().map(title)),
        ("repo_url", repo_url),
    ];
    entries.into_iter().filter_map(|(key, value)| Some((key.to_string(), value?))).collect()
}

/// `key: rest` of a line, the rest without what is around it.
fn pair(line: &str) -> Option<(String, String)> {
    let (key, rest) = line.split_once(':')?;
    if !rest.is_empty() && !rest.starts_with(' ') {
        return None;
    }
    let key = key.trim().trim_matches(['"', '\'']);
    (!key.is_empty()).then(|| (key.to_string(), rest.trim().to_string()))
}

/// The value of a key: what stands behind it, or the lines below.
fn value(inline: &str, block: &[String]) -> Option<Yaml> {
    if inline.starts_with(['|', '>']) {
        return Some(Yaml::Scalar(folded(inline, block)));
    }
    if let Some(list) = inline.strip_prefix('[') {
        // It may go on below.
        let rest = block.iter().map(|line| line.trim());
        let list = std::iter::once(list.trim()).chain(rest).collect::<Vec<_>>().join(" ");
        let end = list.find(']').unwrap_or(list.len());
        return Some(Yaml::List(list[..end].split(',').filter_map(scalar).map(Yaml::Scalar).collect()));
    }
    if inline.is_empty() || inline.starts_with('#') {
        return items(block).map(Yaml::List);
    }
    scalar(inline).map(Yaml::Scalar)
}

/// The items of a list with dashes, of which each is a scalar or a map of scalars.
fn items(block: &[String]) -> Option<Vec<Yaml>> {
    let lines: Vec<&String> =
        block.iter().filter(|line| !matches!(line.trim_start().bytes().next(), None | Some(b'#'))).collect();
    let indent = |line: &str| line.len() - line.trim_start().len();
    let outer = indent(lines.first()?);
    let mut items = Vec::new();
    for line in lines {
        let text = line.trim();
        if indent(line) == outer
            && let Some(item) = text.strip_prefix('-')
        {
            let item = item.trim();
            let quoted = item.starts_with(['"', '\'']);
            items.push(match pair(item).filter(|_| !quoted) {
                Some((key, rest)) => Yaml::Map(scalar(&rest).map(|rest| (key, rest)).into_iter().collect()),
                None => match scalar(item) {
                    Some(text) => Yaml::Scalar(text),
                    None => continue,
                },
            });
        } else if let (Some(Yaml::Map(entries)), Some((key, rest))) = (items.last_mut(), pair(text)) {
            entries.extend(scalar(&rest).map(|rest| (key, rest)));
        }
    }
    Some(items)
}

/// A plain or quoted scalar; `None` for nothing.
fn scalar(text: &str) -> Option<String> {
    let text = text.trim();
    if let Some(rest) = text.strip_prefix('"') {
        let mut out = String::new();
        let mut chars = rest.chars();
        while let Some(c) = chars.next().filter(|c| *c != '"') {
            out.push(match c {
                '\\' => match chars.next()? {
                    'n' => '\n',
                    't' => '\t',
                    other => other,
                },
                c => c,
            });
        }
        return Some(out);
    }
    if let Some(rest) = text.strip_prefix('\'') {
        let end = rest.rfind('\'').unwrap_or(rest.len());
        return Some(rest[..end].replace("''", "'"));
    }
    let text = text.split(" #").next().unwrap_or_default().trim();
    (!["", "~", "null", "Null", "NULL"].contains(&text) && !text.starts_with('#')).then(|| text.to_string())
}

/// A scalar over several lines: lines that stay apart after `|`, and that become one after `>`; with a line end behind them, unless
/// a dash follows.
fn folded(style: &str, block: &[String]) -> String {
    let lines: Vec<&str> = block.iter().map(|line| line.trim()).collect();
    let text = lines.join(if style.starts_with('|') { "\n" } else { " " });
    let end = if style.contains('-') { "" } else { "\n" };
    format!("{}{end}", text.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    const README: &str = "---
license: other   # as it says
license_name: 'llama''s own'
license_link: \"https://example.org/a:b\"
base_model:
- meta-llama/Llama-3.2-1B-Instruct
- https://huggingface.co/lmsys/vicuna-13b-v1.5
- https://example.org/models/x
datasets: [ \"liuhaotian/LLaVA-Pretrain\", plain ]
language:
  - en
  # none
  - \"no\"
tags:
- vision
pipeline_tag: image-text-to-text
model_creator: Somebody
model_name: >-
  A fine
  name
widget:
- text: 'base_model: no'
  output:
    url: x.png
extra_gated_prompt: |
  license: mit
url: https://example.org
---
license: apache-2.0
";

    fn key<'a>(keys: &'a [(String, Value)], name: &str) -> Option<&'a Value> {
        keys.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    #[test]
    fn a_card_says_where_a_model_comes_from() {
        let card = Card::parse(README);
        let keys = card.keys(13_000_000_000);
        for (name, expected) in [
            ("license", "other"),
            ("license.name", "llama's own"),
            ("license.link", "https://example.org/a:b"),
            ("source.url", "https://example.org"),
            ("base_model.0.name", "Llama 3.2 1B Instruct"),
            ("base_model.0.organization", "Meta Llama"),
            ("base_model.0.repo_url", "https://huggingface.co/meta-llama/Llama-3.2-1B-Instruct"),
            ("base_model.1.name", "Vicuna 13b v1.5"),
            ("base_model.1.version", "v1.5"),
            ("base_model.1.organization", "Lmsys"),
            ("base_model.1.repo_url", "https://huggingface.co/lmsys/vicuna-13b-v1.5"),
            ("base_model.2.repo_url", "https://example.org/models/x"),
            ("dataset.0.name", "LLaVA Pretrain"),
            ("dataset.1.name", "Plain"),
        ] {
            assert_eq!(key(&keys, &format!("general.{name}")), Some(&Value::from(expected)), "{name}");
        }
        assert_eq!(key(&keys, "general.base_model.count"), Some(&Value::U32(3)));
        assert_eq!(key(&keys, "general.dataset.count"), Some(&Value::U32(2)));
        assert_eq!(key(&keys, "general.base_model.2.name"), None);
        assert_eq!(key(&keys, "general.dataset.1.repo_url"), None);
        let strings = |texts: &[&str]| Value::from(texts.iter().map(|t| t.to_string()).collect::<Vec<_>>());
        assert_eq!(key(&keys, "general.tags"), Some(&strings(&["vision", "image-text-to-text"])));
        assert_eq!(key(&keys, "general.languages"), Some(&strings(&["en", "no"])));
        assert_eq!(card.text(&["author", "model_creator"]).as_deref(), Some("Somebody"));
        assert_eq!(card.text(&["name", "model_name"]).as_deref(), Some("A fine name"));
    }

    #[test]
    fn maps_are_taken_as_they_are() {
        let card = Card::parse("---\nbase_model:\n  - name: A\n    author: B\n    other: C\n  - name: D\n---\n");
        let keys = card.keys(0);
        assert_eq!(key(&keys, "general.base_model.0.author"), Some(&Value::from("B")));
        assert_eq!(key(&keys, "general.base_model.1.name"), Some(&Value::from("D")));
        assert_eq!(keys.len(), 4);
    }

    #[test]
    fn no_card_says_nothing() {
        for text in ["", "# A model\nlicense: mit\n", "---", "---\n---\nlicense: mit", "---\n\n- a\n: b\nlicense:\n"] {
            assert!(Card::parse(text).keys(0).is_empty(), "{text:?}");
        }
    }
}
