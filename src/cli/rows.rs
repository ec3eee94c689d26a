//! Files of JSON lines with pictures, prompts and answers.

use super::read_text;
use crate::{Error, ErrorKind, Result, bail};
use serde_json::Value;
use std::path::Path;

/// What is asked about some pictures, and the answer to it.
pub struct Row {
    /// Sources of pictures, as [`crate::media::load`] takes them.
    pub images: Vec<String>,
    /// The prompt.
    pub text: String,
    /// The answer, if there is one.
    pub answer: Option<String>,
}

/// The rows of a file of lines `{"image": PATH or list of them, "text": PROMPT, "answer": TEXT}`, or with `"prompt"` for
/// `"text"`. Paths are relative to the file. Each row must have an answer if `with_answers`.
pub fn read(path: &Path, with_answers: bool) -> Result<Vec<Row>> {
    let text = read_text(path)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut rows = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |what: String| Error::new(ErrorKind::Format, format!("{}, line {}: {what}", path.display(), i + 1));
        let row: Value = serde_json::from_str(line).map_err(|e| wrong(e.to_string()))?;
        let field = |name: &str| match row.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(wrong(format!("expected a string \"{name}\""))),
        };
        let required =
            |name: &str, text: Option<String>| text.ok_or_else(|| wrong(format!("expected a string \"{name}\"")));
        let images = match row.get("image") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(list)) => list.iter().collect(),
            Some(one) => vec![one],
        };
        let locate = |image: &Value| match image.as_str() {
            None | Some("-") => Err(wrong("expected \"image\" to be a path or a list of paths".into())),
            Some(data) if data.starts_with("data:") => Ok(data.to_owned()),
            Some(name) => {
                folder.join(name).into_os_string().into_string().map_err(|p| wrong(format!("{p:?}: no UTF-8")))
            }
        };
        let mut answer = field("answer")?;
        if with_answers {
            answer = Some(required("answer", answer)?);
        }
        let text = match field("text")? {
            None => field("prompt")?,
            text => text,
        };
        rows.push(Row {
            images: images.into_iter().map(locate).collect::<Result<_>>()?,
            text: required("text", text)?,
            answer,
        });
    }
    if rows.is_empty() {
        bail!(Usage, "{}: there are no rows", path.display());
    }
    Ok(rows)
}
