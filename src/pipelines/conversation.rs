//! A conversation as messages with their pictures, of which the oldest turns can leave where the context is too small.

use super::engine::Engine;
use super::prompt::{EncodedImage, Prompt};
use crate::text::template::{IMAGE_MARKER, Message, Role};
use crate::{Result, bail};
use std::sync::Arc;

/// Messages from the first one on. A turn is what the user says with all that follows until the user speaks again.
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    messages: Vec<Message>,
    /// Of each message, its pictures.
    images: Vec<Vec<Arc<EncodedImage>>>,
}

impl Conversation {
    /// Appends a message; each [`IMAGE_MARKER`] in it stands for the next of `images`.
    ///
    /// # Errors
    /// More or fewer pictures than markers.
    pub fn push(&mut self, message: Message, images: &[Arc<EncodedImage>]) -> Result<()> {
        let n_markers = message.content.matches(IMAGE_MARKER).count();
        if n_markers != images.len() {
            bail!(Mismatch, "the message has places for {n_markers} pictures, but {} are given", images.len());
        }
        self.messages.push(message);
        self.images.push(images.to_vec());
        Ok(())
    }

    /// Its messages.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The conversation as the chat template writes it; the answer comes next.
    ///
    /// # Errors
    /// A template that cannot be applied to these messages.
    pub fn prompt(&self, engine: &Engine) -> Result<Prompt> {
        let images: Vec<_> = self.images.iter().flatten().cloned().collect();
        engine.chat_prompt(&self.messages, &images)
    }

    /// Takes the oldest turn out, with its pictures; what comes before the first turn (the system's message) stays, and so does the
    /// last turn. Returns whether there was one.
    pub fn drop_oldest_turn(&mut self) -> bool {
        let starts = |m: &Message| m.role == Role::User;
        let Some(first) = self.messages.iter().position(starts) else { return false };
        let Some(n) = self.messages[first + 1..].iter().position(starts) else { return false };
        self.messages.drain(first..=first + n);
        self.images.drain(first..=first + n);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_turn_leaves_and_the_system_stays() {
        use Role::{Assistant, System, User};
        let mut conversation = Conversation::default();
        let messages = [(System, "s"), (User, "a"), (Assistant, "b"), (User, "c"), (User, "d"), (Assistant, "e")];
        for (role, text) in messages {
            conversation.push(Message { role, content: text.into() }, &[]).unwrap();
        }
        let mut seen = Vec::new();
        loop {
            seen.push(conversation.messages().iter().map(|m| m.content.as_str()).collect::<String>());
            assert_eq!(conversation.images.len(), conversation.messages.len());
            if !conversation.drop_oldest_turn() {
                break;
            }
        }
        assert_eq!(seen, ["sabcde", "scde", "sde"]);
        assert!(!Conversation::default().drop_oldest_turn());
        let error = conversation.push(Message { role: User, content: "<__media__>".into() }, &[]).unwrap_err();
        assert!(error.to_string().contains("1 pictures, but 0"), "{error}");
    }
}
