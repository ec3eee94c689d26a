//! Chat templates: the GGUF's own through minijinja, and LLaVA's built in.

use crate::Result;
use crate::gguf::Metadata;

/// Who says a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Role {
    System,
    User,
    Assistant,
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

/// A way to write a conversation as a prompt.
#[derive(Clone, Debug)]
pub struct ChatTemplate {}

#[allow(unused_variables)]
impl ChatTemplate {
    /// A built-in template's name, or Jinja text.
    pub fn new(name_or_jinja: &str) -> Result<ChatTemplate> {
        todo!()
    }
    /// The template that fits the files: `tokenizer.chat_template`, or for a LLaVA pair the one that its authors used.
    pub fn pick(text: &Metadata, mmproj: Option<&Metadata>) -> Result<ChatTemplate> {
        todo!()
    }
    /// Its name: a built-in one's, or `jinja`.
    pub fn name(&self) -> &str {
        todo!()
    }
    /// The prompt, with [`IMAGE_MARKER`] where pictures go. `bos`/`eos` are the texts of these tokens.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool, bos: &str, eos: &str) -> Result<String> {
        todo!()
    }
    /// Texts that end an answer besides the end tokens (LLaVA v0's `###`).
    pub fn stop_strings(&self) -> &[String] {
        todo!()
    }
}
