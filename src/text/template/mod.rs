//! Chat templates: the GGUF's own through minijinja; LLaVA's, MiniGPT-4's and llama.cpp's well-known ones built in.

mod builtin;
mod date;
mod jinja;

#[cfg(test)]
mod tests;

use crate::gguf::Metadata;
use crate::{Result, bail};
use builtin::Style;
use jinja::Jinja;

/// Who says a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Role {
    System,
    User,
    Assistant,
}

impl Role {
    /// `system`, `user` or `assistant`.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// A message: text in which each [`IMAGE_MARKER`] stands for a picture.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Message {
    pub role: Role,
    pub content: String,
}

/// Stands for a picture in a message's and in a rendered prompt's text.
pub const IMAGE_MARKER: &str = "<__media__>";

/// A stretch of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The template's own text: control tokens written out in it are meant.
    Frame(String),
    /// What a message says.
    Said(String),
}

/// A prompt, stretch by stretch.
#[derive(Clone, Debug, Default)]
pub struct Parts(pub Vec<Part>);

impl Parts {
    fn frame(&mut self, text: &str) {
        match self.0.last_mut() {
            Some(Part::Frame(last)) => last.push_str(text),
            _ if text.is_empty() => {}
            _ => self.0.push(Part::Frame(text.to_owned())),
        }
    }

    fn said(&mut self, text: &str) {
        match self.0.last_mut() {
            Some(Part::Said(last)) => last.push_str(text),
            _ if text.is_empty() => {}
            _ => self.0.push(Part::Said(text.to_owned())),
        }
    }

    /// The whole of it.
    pub fn text(&self) -> String {
        let text = |part: &Part| match part {
            Part::Frame(text) | Part::Said(text) => text.clone(),
        };
        self.0.iter().map(text).collect()
    }
}

/// A way to write a conversation as a prompt.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    kind: Kind,
    stop: Vec<String>,
}

#[derive(Clone, Debug)]
enum Kind {
    Builtin(&'static Style),
    Jinja(Jinja),
}

impl ChatTemplate {
    /// A built-in template's name, or Jinja text. An unknown name is a [`Usage`](crate::ErrorKind::Usage) error, broken
    /// Jinja a [`Format`](crate::ErrorKind::Format) one.
    pub fn new(name_or_jinja: &str) -> Result<ChatTemplate> {
        if let Some(style) = builtin::find(name_or_jinja.trim()) {
            let stop = style.stop.iter().map(|s| s.to_string()).collect();
            return Ok(ChatTemplate { kind: Kind::Builtin(style), stop });
        }
        if !name_or_jinja.contains("{{") && !name_or_jinja.contains("{%") {
            let names: Vec<&str> = builtin::names().collect();
            bail!(Usage, "unknown chat template \"{name_or_jinja}\"; known are {}", names.join(", "));
        }
        Ok(ChatTemplate { kind: Kind::Jinja(Jinja::new(name_or_jinja)?), stop: Vec::new() })
    }

    /// The names of the built-in templates.
    pub fn names() -> impl Iterator<Item = &'static str> {
        builtin::names()
    }

    /// The template that fits the files: the built-in one that the mmproj names (`clip.chat_template`); for a pair known as one of LLaVA's what its authors used, whose `\n` after the
    /// picture the text model's own template does not have; else `tokenizer.chat_template`; else one whose control tokens
    /// the vocabulary has, or `plain`, which only joins the messages.
    pub fn pick(text: &Metadata, mmproj: Option<&Metadata>) -> Result<ChatTemplate> {
        const KEY: &str = "clip.chat_template";
        if let Some(mmproj) = mmproj
            && let Some(name) = mmproj.str(KEY)?
        {
            return ChatTemplate::new(name).map_err(|e| e.context(format!("{}: {KEY}", mmproj.file())));
        }
        if let Some(mmproj) = mmproj
            && mmproj.str("clip.projector_type")? == Some("resampler_qwen")
        {
            return ChatTemplate::new("qwen_vl");
        }
        let llava = match mmproj {
            Some(mmproj) => is_llava(mmproj)?,
            None => false,
        };
        let names = [Some(text), mmproj].into_iter().flatten().map(known_as).collect::<Vec<_>>().join(" ");
        if let Some(name) = llava_template(&names).filter(|_| llava && names.contains("llava")) {
            return ChatTemplate::new(name);
        }
        if let Some(template) = text.str("tokenizer.chat_template")?.filter(|t| !t.trim().is_empty()) {
            return ChatTemplate::new(template)
                .map_err(|e| e.context(format!("{}: tokenizer.chat_template", text.file())));
        }
        let has = |token: &str| -> Result<bool> {
            Ok(text.strings("tokenizer.ggml.tokens")?.is_some_and(|tokens| tokens.iter().any(|t| t == token)))
        };
        let name = if llava {
            match llava_template(&names) {
                Some(name) => name,
                None if has("<|start_header_id|>")? => "llama3",
                None if has("<|im_start|>")? => "chatml_direct",
                None => "vicuna_v1",
            }
        } else if has("<|im_start|>")? {
            "chatml"
        } else if has("<|start_header_id|>")? {
            "llama3"
        } else if has("<start_of_turn>")? {
            "gemma"
        } else {
            "plain"
        };
        ChatTemplate::new(name)
    }

    /// Its name: a built-in one's, or `jinja`.
    pub fn name(&self) -> &str {
        match &self.kind {
            Kind::Builtin(style) => style.names[0],
            Kind::Jinja(_) => "jinja",
        }
    }

    /// The prompt, with [`IMAGE_MARKER`] where pictures go. `bos`/`eos` are the texts of these tokens. What a Jinja
    /// template refuses is a [`Format`](crate::ErrorKind::Format) error with its words.
    ///
    /// With `add_generation_prompt`, a last message of the assistant is the beginning of its answer: the prompt ends with it.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool, bos: &str, eos: &str) -> Result<String> {
        Ok(self.parts(messages, add_generation_prompt, bos, eos)?.text())
    }

    /// [`ChatTemplate::render`], with what the template says told from what messages say; Jinja does not tell.
    pub fn parts(&self, messages: &[Message], add_generation_prompt: bool, bos: &str, eos: &str) -> Result<Parts> {
        if let [head @ .., begun] = messages
            && begun.role == Role::Assistant
            && add_generation_prompt
        {
            let mut parts = match &self.kind {
                Kind::Builtin(style) => {
                    let mut parts = style.render(head, false);
                    parts.frame(style.assistant_start());
                    parts
                }
                Kind::Jinja(_) => self.parts(head, true, bos, eos)?,
            };
            parts.said(&begun.content);
            return Ok(parts);
        }
        match &self.kind {
            Kind::Builtin(style) => Ok(style.render(messages, add_generation_prompt)),
            Kind::Jinja(jinja) => {
                Ok(Parts(vec![Part::Frame(jinja.render(messages, add_generation_prompt, bos, eos)?)]))
            }
        }
    }

    /// The control tokens that messages may hold: others written out in them are text. `None`: all are meant.
    pub fn tags(&self) -> Option<&'static [&'static str]> {
        match &self.kind {
            Kind::Builtin(style) => style.tags,
            Kind::Jinja(_) => None,
        }
    }

    /// Texts that end an answer besides the end tokens (LLaVA v0's `###`).
    pub fn stop_strings(&self) -> &[String] {
        &self.stop
    }
}

/// Whether the projector is one of LLaVA's or MobileVLM's, which know no tokens around a picture.
fn is_llava(mmproj: &Metadata) -> Result<bool> {
    Ok(match mmproj.str("clip.projector_type")? {
        Some(projector) => ["mlp", "mlp_norm", "ldp", "ldpv2"].contains(&projector),
        None => mmproj.bool("clip.has_llava_projector")?.unwrap_or(false),
    })
}

/// Everything that a file is called, in small letters, with dashes between words.
fn known_as(metadata: &Metadata) -> String {
    let key = |key| metadata.str(key).ok().flatten().unwrap_or_default();
    let file = metadata.file().rsplit(['/', '\\']).next().unwrap_or_default();
    [key("general.name"), key("general.basename"), key("general.finetune"), file]
        .join(" ")
        .replace(' ', "-")
        .to_lowercase()
}

/// What LLaVA's authors used for a model of this name.
fn llava_template(names: &str) -> Option<&'static str> {
    let any = |words: &[&str]| words.iter().any(|w| names.contains(w));
    Some(if any(&["mistral"]) {
        "mistral_instruct"
    } else if any(&["v1.6-34b", "1.6-34b", "34b", "hermes"]) {
        "chatml_direct"
    } else if any(&["v1.5", "v1.6", "llava-1.5", "llava-1.6", "vicuna", "mobilevlm"]) {
        "vicuna_v1"
    } else if any(&["llama-2", "llama2", "llama_2"]) {
        "llava_llama_2"
    } else if any(&["llava-v1", "llava_v1", "v1-"]) {
        "llava_v1"
    } else if any(&["v0"]) {
        "llava_v0"
    } else {
        return None;
    })
}
