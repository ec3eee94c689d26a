//! Jinja templates from model files, run as the `transformers` library runs them: a stranger's program, so with limits.

use super::{Message, Role};
use crate::{Error, ErrorKind, Result, bail};
use minijinja::value::{Kwargs, Rest, Value};
use minijinja::{Environment, ErrorKind as JinjaKind, State, context};
use serde::Serialize;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Instructions that a template may run.
const FUEL: u64 = 4_000_000;
/// Bytes that it may write.
const MAX_OUTPUT: usize = 64 << 20;

/// A compiled template and what it understands.
#[derive(Clone, Debug)]
pub(super) struct Jinja {
    env: Arc<Environment<'static>>,
    /// Messages are lists of parts, not strings.
    parts: bool,
    /// There is a role for the system's message.
    system: bool,
}

/// What of a message the template may see.
#[derive(Serialize)]
struct Turn<'m> {
    role: &'static str,
    content: Content<'m>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Content<'m> {
    Text(&'m str),
    Parts([Part<'m>; 1]),
}

#[derive(Serialize)]
struct Part<'m> {
    r#type: &'static str,
    text: &'m str,
}

impl Jinja {
    /// Compiles `source` and finds out by trial how it wants its messages.
    pub fn new(source: &str) -> Result<Jinja> {
        let mut env = Environment::new();
        env.set_trim_blocks(true);
        env.set_lstrip_blocks(true);
        env.set_fuel(Some(FUEL));
        env.set_unknown_method_callback(|state, value, method, args| {
            if method == "format" {
                check_widths(value)?;
            }
            minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
        });
        env.add_filter("tojson", tojson);
        env.add_filter("indent", indent);
        env.add_filter("format", |state: &State, text: &Value, args: Rest<Value>| {
            check_widths(text)?;
            minijinja::filters::format(state, text, args)
        });
        // In Python nothing comes out of `None`, and a string is a row of characters.
        env.add_test("iterable", |value: &Value| {
            value.as_str().is_some() || (!value.is_none() && value.try_iter().is_ok())
        });
        env.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(JinjaKind::InvalidOperation, message))
        });
        env.add_function("strftime_now", |format: String| super::date::strftime(&format, std::time::SystemTime::now()));
        survive(|| env.add_template_owned("chat_template", without_generation_tags(source)))?;

        let mut jinja = Jinja { env: Arc::new(env), parts: false, system: true };
        let user = |content: &str| Message { role: Role::User, content: content.into() };
        let question = [user("mmq-question")];
        let system = Message { role: Role::System, content: "mmq-system".into() };
        let shows = |jinja: &Jinja, messages: &[Message], text: &str| {
            jinja.run(messages, true, "", "").is_ok_and(|prompt| prompt.contains(text))
        };
        if !shows(&jinja, &question, "mmq-question") {
            let parts = Jinja { parts: true, ..jinja.clone() };
            if shows(&parts, &question, "mmq-question") {
                jinja = parts;
            }
        }
        let both = [system, user("mmq-question")];
        jinja.system = shows(&jinja, &both, "mmq-system") || !shows(&jinja, &question, "mmq-question");
        Ok(jinja)
    }

    pub fn render(&self, messages: &[Message], add_generation_prompt: bool, bos: &str, eos: &str) -> Result<String> {
        if self.system || messages.first().is_none_or(|m| m.role != Role::System) {
            return self.run(messages, add_generation_prompt, bos, eos);
        }
        // No role for the system: its words go in front of the user's first.
        let mut rest = messages[1..].to_vec();
        if let Some(first) = rest.first_mut() {
            first.content = format!("{}\n\n{}", messages[0].content, first.content);
        }
        self.run(&rest, add_generation_prompt, bos, eos)
    }

    fn run(&self, messages: &[Message], add_generation_prompt: bool, bos: &str, eos: &str) -> Result<String> {
        let turns: Vec<Turn> = messages
            .iter()
            .map(|m| Turn {
                role: m.role.name(),
                content: match self.parts {
                    true => Content::Parts([Part { r#type: "text", text: &m.content }]),
                    false => Content::Text(&m.content),
                },
            })
            .collect();
        let context = context! {
            messages => turns,
            bos_token => bos,
            eos_token => eos,
            add_generation_prompt => add_generation_prompt,
            tools => (),
            documents => (),
        };
        let template = self.env.get_template("chat_template").map_err(|e| error(&e))?;
        let mut out = Limited(Vec::new());
        survive(|| template.render_captured_to(context, &mut out).map(|_| ()))?;
        String::from_utf8(out.0).map_err(|e| Error::new(ErrorKind::Format, format!("chat template: {e}")))
    }
}

/// Runs the engine. The last guard: a bug of it in a stranger's template must not take the program with it. (It panics when it
/// compiles an import whose name is an expression, and when it reads an empty list backwards.)
fn survive<T>(engine: impl FnOnce() -> Result<T, minijinja::Error>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(engine)) {
        Ok(result) => result.map_err(|e| error(&e)),
        Err(_) => bail!(Format, "chat template: the template engine gave up"),
    }
}

/// A buffer that refuses to grow for ever.
struct Limited(Vec<u8>);

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(io::Error::other(format!("more than {MAX_OUTPUT} bytes of output")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn error(error: &minijinja::Error) -> Error {
    let mut message = format!("chat template: {error}");
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        message.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    Error::new(ErrorKind::Format, message)
}

/// The `{% generation %}` tags mark what training looks at; they write nothing.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let inside = start + 2;
        let Some(length) = rest[inside..].find("%}") else { break };
        let (tag, after) = (&rest[inside..inside + length], inside + length + 2);
        let name = tag.trim_matches(|c: char| c.is_ascii_whitespace() || c == '-' || c == '+');
        out.push_str(&rest[..start]);
        if name == "generation" || name == "endgeneration" {
            let sign = |c: Option<char>| if matches!(c, Some('-' | '+')) { c.map(String::from) } else { None };
            let (left, right) = (sign(tag.chars().next()), sign(tag.chars().next_back()));
            out.push_str(&format!(
                "{{%{} if true %}}{{% endif {}%}}",
                left.unwrap_or_default(),
                right.unwrap_or_default()
            ));
        } else {
            out.push_str(&rest[start..after]);
        }
        rest = &rest[after..];
    }
    out.push_str(rest);
    out
}

/// `tojson` as Python's `json.dumps(…, ensure_ascii=False)` writes it; Jinja's own escapes for HTML.
fn tojson(value: Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Understood and without effect, or of no use in a prompt.
    let _: (Option<bool>, Option<Value>, Option<bool>) =
        (options.get("ensure_ascii")?, options.get("separators")?, options.get("sort_keys")?);
    let fail = |e: serde_json::Error| minijinja::Error::new(JinjaKind::BadSerialization, e.to_string());
    let mut out = Vec::new();
    let text = match indent {
        Some(indent) => {
            let spaces = vec![b' '; indent.min(16)];
            let formatter = serde_json::ser::PrettyFormatter::with_indent(&spaces);
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter)).map_err(fail)?;
            String::from_utf8(out)
        }
        None => {
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonFormatter)).map_err(fail)?;
            String::from_utf8(out)
        }
    };
    let text = text.map_err(|e| minijinja::Error::new(JinjaKind::BadSerialization, e.to_string()))?;
    Ok(Value::from_safe_string(text))
}

/// Most spaces that one step of a template may ask for.
const MAX_WIDTH: usize = 1000;

fn too_wide() -> minijinja::Error {
    minijinja::Error::new(JinjaKind::InvalidOperation, format!("more than {MAX_WIDTH} columns"))
}

/// Refuses a format string with a number of more than three digits or a width among its arguments: the formatter would
/// allocate what they say.
fn check_widths(format: &Value) -> Result<(), minijinja::Error> {
    let text = format.as_str().unwrap_or_default();
    let wide = text.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 3);
    let flags = |c: char| "-+ #.".contains(c) || c.is_ascii_digit();
    let wide = wide || text.split('%').skip(1).any(|rest| rest.trim_start_matches(flags).starts_with('*'));
    if wide { Err(too_wide()) } else { Ok(()) }
}

/// Jinja's `indent`, of a bounded width.
fn indent(
    text: &str,
    width: Option<usize>,
    first: Option<bool>,
    blank: Option<bool>,
    options: Kwargs,
) -> Result<String, minijinja::Error> {
    let width = width.or(options.get("width")?).unwrap_or(4);
    let first = first.or(options.get("first")?).unwrap_or(false);
    let blank = blank.or(options.get("blank")?).unwrap_or(false);
    options.assert_all_used()?;
    if width > MAX_WIDTH {
        return Err(too_wide());
    }
    let spaces = " ".repeat(width);
    let text = text.strip_suffix('\n').unwrap_or(text);
    let lines = text.split('\n').enumerate().map(|(i, line)| {
        let indented = if i == 0 { first } else { blank || !line.trim_end_matches('\r').is_empty() };
        format!("{}{line}", if indented { spaces.as_str() } else { "" })
    });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// JSON on one line with a space behind each comma and colon.
struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }
    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }
    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}
