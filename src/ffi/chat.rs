//! A session of the interface: the messages so far, and the timeline that reads them. Pictures are encoded when the prompt
//! is read, so that it can be counted before.

use super::edge::{Result, usage};
use super::error::Failure;
use super::task::{Level, Phase, Task};
use crate::media::Image;
use crate::pipelines::{Conversation, EncodedImage, Finish, Generation, Session};
use crate::text::template::{IMAGE_MARKER, Message};
use crate::text::{self};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, TryLockError};
use std::time::Instant;

/// A conversation.
#[allow(non_camel_case_types)]
pub struct mmq_session {
    chat: Mutex<Chat>,
}

impl mmq_session {
    pub(super) fn new(session: Session, generation: Generation) -> mmq_session {
        let chat = Chat { session, generation, turns: Vec::new(), n_read: 0, n_answer: 0 };
        mmq_session { chat: Mutex::new(chat) }
    }

    /// Runs `call` on the conversation, which nobody else may use meanwhile. A panic leaves it unusable.
    pub(super) fn with<T>(&self, call: impl FnOnce(&mut Chat) -> Result<T>) -> Result<T> {
        match self.chat.try_lock() {
            Ok(mut chat) => call(&mut chat),
            Err(TryLockError::WouldBlock) => Err(Failure::Busy("session")),
            Err(TryLockError::Poisoned(_)) => {
                Err(Failure::Panic("the session is broken: a bug in mmq ended a call on it".into()))
            }
        }
    }
}

/// Who says a message; raw text is nobody's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Raw,
    Says(text::Role),
}

impl Role {
    pub fn from_c(role: i32) -> Result<Role> {
        Ok(match role {
            0 => Role::Raw,
            1 => Role::Says(text::Role::System),
            2 => Role::Says(text::Role::User),
            3 => Role::Says(text::Role::Assistant),
            _ => {
                let expected = "expected MMQ_RAW, MMQ_SYSTEM, MMQ_USER or MMQ_ASSISTANT";
                return Err(usage(format!("role {role}: {expected}")));
            }
        })
    }
}

/// A message.
struct Turn {
    role: Role,
    parts: Vec<Part>,
}

/// What a message is made of.
pub(super) enum Part {
    Text(String),
    Picture(Arc<Image>),
    Encoded(Arc<EncodedImage>),
}

/// A prompt that is to be read.
enum Wanted {
    Raw(String, Vec<Arc<EncodedImage>>),
    Chat(Conversation),
}

impl Turn {
    /// Its text, with markers for its pictures.
    fn content(&self) -> String {
        self.parts.iter().map(|part| if let Part::Text(text) = part { text.as_str() } else { IMAGE_MARKER }).collect()
    }
}

impl Part {
    fn encoded(&self) -> Option<&Arc<EncodedImage>> {
        if let Part::Encoded(encoded) = self { Some(encoded) } else { None }
    }
}

pub(super) struct Chat {
    pub session: Session,
    generation: Generation,
    turns: Vec<Turn>,
    /// Tokens that went through the model before the last answer.
    pub n_read: usize,
    /// Tokens of the last answer.
    pub n_answer: usize,
}

impl Chat {
    pub fn n_messages(&self) -> usize {
        self.turns.len()
    }

    /// Appends to the last message, if that is `role`'s, or begins a new one.
    pub fn add(&mut self, role: Role, part: Part) -> Result<()> {
        if let Part::Text(text) = &part
            && text.contains(IMAGE_MARKER)
        {
            return Err(usage(format!(
                "the text has {IMAGE_MARKER} in it, which stands for a picture: add one instead"
            )));
        }
        if let Part::Picture(image) = &part {
            // What cannot be looked at is refused now, not when the prompt is read.
            self.session.engine().n_image_tokens(image.width, image.height)?;
        }
        let raw = |role| role == Role::Raw;
        if self.turns.first().is_some_and(|first| raw(first.role) != raw(role)) {
            return Err(usage("raw text and messages cannot be mixed in a session".into()));
        }
        if role == Role::Says(text::Role::System) && self.turns.iter().any(|turn| turn.role != role) {
            return Err(usage("the system's message must come first".into()));
        }
        match self.turns.last_mut().filter(|last| last.role == role) {
            Some(last) => last.parts.push(part),
            None => self.turns.push(Turn { role, parts: vec![part] }),
        }
        Ok(())
    }

    /// Forgets all but the first `n` messages.
    pub fn truncate(&mut self, n: usize) {
        self.turns.truncate(n);
    }

    fn is_raw(&self) -> bool {
        self.turns.first().is_some_and(|turn| turn.role == Role::Raw)
    }

    /// An error unless there is something to answer.
    fn check(&self) -> Result<()> {
        let Some(last) = self.turns.last() else {
            return Err(usage("the session is empty: add a text or a picture first".into()));
        };
        if last.role == Role::Says(text::Role::Assistant) {
            return Err(usage("the last message is the assistant's: add one of the user's first".into()));
        }
        Ok(())
    }

    /// The prompt, for which `encoded` gives each picture.
    fn prompt(&self, encoded: &dyn Fn(&Part) -> Result<Option<Arc<EncodedImage>>>) -> Result<Wanted> {
        let mut conversation = Conversation::default();
        for turn in &self.turns {
            let mut images = Vec::new();
            for part in &turn.parts {
                images.extend(encoded(part)?);
            }
            match turn.role {
                Role::Raw => return Ok(Wanted::Raw(turn.content(), images)),
                Role::Says(role) => conversation.push(Message { role, content: turn.content() }, &images)?,
            }
        }
        Ok(Wanted::Chat(conversation))
    }

    fn parts(&mut self) -> impl Iterator<Item = &mut Part> {
        self.turns.iter_mut().flat_map(|turn| &mut turn.parts)
    }

    /// Positions that the prompt takes, its pictures not yet being encoded.
    pub fn n_tokens(&mut self, task: &Task) -> Result<usize> {
        self.check()?;
        let engine = self.session.engine();
        let wanted = self.prompt(&|part| {
            Ok(match part {
                Part::Text(_) => None,
                Part::Picture(image) => Some(engine.placeholder(image.width, image.height)?),
                Part::Encoded(encoded) => Some(encoded.clone()),
            })
        })?;
        let prompt = task.cancel.guard(|| match &wanted {
            Wanted::Raw(text, images) => engine.prompt(text, images),
            Wanted::Chat(conversation) => conversation.prompt(engine),
        })?;
        Ok(prompt.n_tokens())
    }

    /// Encodes the pictures that are not encoded yet, and reads the prompt.
    pub fn prefill(&mut self, task: &Task) -> Result<()> {
        self.check()?;
        let engine = self.session.engine().clone();
        let n = self.parts().filter(|part| matches!(part, Part::Picture(_))).count();
        let mut show = task.progress(Phase::Encode);
        let mut n_done = 0;
        for part in self.parts() {
            if let Part::Picture(image) = part {
                let mut progress = |done: f32| show((n_done as f32 + done) / n as f32);
                *part = Part::Encoded(engine.encode_image(image, Some(&task.cancel), Some(&mut progress))?);
                n_done += 1;
                show(n_done as f32 / n as f32);
            }
        }
        engine.take_warnings().into_iter().for_each(|text| task.log(Level::Warning, || text));
        let wanted = self.prompt(&|part| Ok(part.encoded().cloned()))?;
        self.session.set_cancel(&task.cancel);
        let mut show = task.progress(Phase::Prefill);
        let n_dropped = self.session.n_dropped();
        self.n_read = task.cancel.guard(|| match &wanted {
            Wanted::Raw(text, images) => self.session.sync(&engine.prompt(text, images)?, Some(&mut show)),
            Wanted::Chat(conversation) => self.session.chat(conversation, Some(&mut show)),
        })?;
        show(1.0);
        self.follow(n_dropped, task);
        Ok(())
    }

    /// Lets the turns go that have left the session since it had dropped `n` of them.
    fn follow(&mut self, n: usize, task: &Task) {
        let starts = |turn: &Turn| turn.role == Role::Says(text::Role::User);
        for _ in n..self.session.n_dropped() {
            let Some(first) = self.turns.iter().position(starts) else { return };
            let Some(n) = self.turns[first + 1..].iter().position(starts) else { return };
            self.turns.drain(first..=first + n);
            task.log(Level::Info, || "the oldest turn has left the context".into());
        }
    }

    /// Reads the prompt and answers. The answer becomes a message.
    pub fn generate(&mut self, task: &Task, on_text: &mut dyn FnMut(&str) -> ControlFlow<()>) -> Result<Finish> {
        let start = Instant::now();
        self.n_answer = 0;
        self.prefill(task)?;
        let read = start.elapsed().as_secs_f64();
        let raw = self.is_raw();
        let mut generation = self.generation.clone();
        if !raw {
            generation.stop.extend_from_slice(self.session.engine().template().stop_strings());
        }
        let mut answer = String::new();
        let n_dropped = self.session.n_dropped();
        let made = self.session.generate(&generation, &mut |text| {
            // The space that SentencePiece puts in front of an answer is no part of it.
            let text = if raw || !answer.is_empty() { text } else { text.trim_start() };
            answer.push_str(text);
            if text.is_empty() { ControlFlow::Continue(()) } else { on_text(text) }
        })?;
        self.n_answer = made.tokens.len();
        self.follow(n_dropped, task);
        let cancelled = made.finish == Finish::Cancelled && task.cancel.is_cancelled();
        if !(cancelled && answer.is_empty()) {
            let role = if raw { Role::Raw } else { Role::Says(text::Role::Assistant) };
            // Not by `add`: a model may write what a caller may not.
            let answer = Part::Text(answer.replace(IMAGE_MARKER, ""));
            match self.turns.last_mut().filter(|last| last.role == role) {
                Some(last) => last.parts.push(answer),
                None => self.turns.push(Turn { role, parts: vec![answer] }),
            }
        }
        task.log(Level::Info, || {
            let (n_read, n_answer, time) = (self.n_read, self.n_answer, start.elapsed().as_secs_f64() - read);
            format!("read {n_read} tokens in {read:.3} s, made {n_answer} in {time:.3} s")
        });
        if made.finish == Finish::ContextFull {
            task.log(Level::Warning, || format!("the context of {} tokens is full", self.session.n_ctx()));
        }
        if cancelled { Err(crate::Error::stopped().into()) } else { Ok(made.finish) }
    }
}
