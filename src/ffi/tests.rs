//! The interface as C sees it: misuse, panics, ways to open a model, conversations, and calls that are stopped.

use super::*;
use std::ffi::{CString, c_void};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;

const USAGE: mmq_status = 1;
const IO: mmq_status = 2;
const FORMAT: mmq_status = 3;
const CANCELLED: mmq_status = 8;

const RAW: i32 = 0;
const SYSTEM: i32 = 1;
const USER: i32 = 2;
const ASSISTANT: i32 = 3;

/// Status and message of a call.
fn outcome(call: impl FnOnce(*mut *mut mmq_error) -> mmq_status) -> (mmq_status, String) {
    let mut error = null_mut();
    let status = call(&mut error);
    // SAFETY: an error of this library, or null.
    let message = unsafe {
        assert_eq!(mmq_error_status(error), status);
        let message = CStr::from_ptr(mmq_error_message(error)).to_str().unwrap().to_owned();
        mmq_error_free(error);
        message
    };
    (status, message)
}

#[track_caller]
fn succeed(call: impl FnOnce(*mut *mut mmq_error) -> mmq_status) {
    assert_eq!(outcome(call), (OK, String::new()));
}

/// A call that fails with `status` and a message that has `words` in it.
#[track_caller]
fn fail(status: mmq_status, words: &str, call: impl FnOnce(*mut *mut mmq_error) -> mmq_status) {
    let (got, message) = outcome(call);
    assert!(got == status && message.contains(words), "{got}: {message}");
}

fn c(text: &str) -> CString {
    CString::new(text).unwrap()
}

/// Options for a call, which live as long as this.
struct Options(#[allow(dead_code)] Vec<(CString, CString)>, Vec<mmq_option>);

fn options(pairs: &[(&str, &str)]) -> Options {
    let texts: Vec<_> = pairs.iter().map(|(key, value)| (c(key), c(value))).collect();
    let options = texts.iter().map(|(k, v)| mmq_option { key: k.as_ptr(), value: v.as_ptr() }).collect();
    Options(texts, options)
}

/// Frees an object when the test is done with it.
struct Owned<T>(*mut T, unsafe extern "C" fn(*mut T));

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: the object's own destructor, once.
        unsafe { self.1(self.0) }
    }
}

/// The object that a successful call makes.
#[track_caller]
fn made<T>(
    free: unsafe extern "C" fn(*mut T),
    call: impl FnOnce(*mut *mut T, *mut *mut mmq_error) -> mmq_status,
) -> Owned<T> {
    let mut object = null_mut();
    succeed(|error| call(&mut object, error));
    assert!(!object.is_null());
    Owned(object, free)
}

fn engine_with(pairs: &[(&str, &str)]) -> Owned<mmq_engine> {
    let options = options(pairs);
    made(mmq_engine_free, |place, error| {
        // SAFETY: sound arguments, as everywhere in these tests but where they are about others.
        unsafe { mmq_engine_open(null(), null(), options.1.as_ptr(), options.1.len(), null(), place, error) }
    })
}

fn engine() -> Owned<mmq_engine> {
    engine_with(&[("threads", "2")])
}

fn session(engine: &Owned<mmq_engine>, pairs: &[(&str, &str)]) -> Owned<mmq_session> {
    let options = options(&[&[("temp", "0"), ("predict", "40")], pairs].concat());
    made(mmq_session_free, |place, error| {
        // SAFETY: as above.
        unsafe { mmq_session_new(engine.0, options.1.as_ptr(), options.1.len(), place, error) }
    })
}

fn sample() -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano/sample.png")).unwrap()
}

fn image() -> Owned<mmq_image> {
    let file = sample();
    // SAFETY: as above.
    made(mmq_image_free, |place, error| unsafe {
        mmq_image_decode(file.as_ptr().cast(), file.len(), null(), place, error)
    })
}

#[track_caller]
fn add_text(session: &Owned<mmq_session>, role: i32, text: &str) {
    // SAFETY: as above.
    succeed(|error| unsafe { mmq_session_add_text(session.0, role, c(text).as_ptr(), error) });
}

#[track_caller]
fn add_image(session: &Owned<mmq_session>, image: &Owned<mmq_image>) {
    // SAFETY: as above.
    succeed(|error| unsafe { mmq_session_add_image(session.0, USER, image.0, error) });
}

unsafe extern "C" fn collect(user: *mut c_void, text: *const c_char, size: usize) -> i32 {
    // SAFETY: `user` is the string that `answer` gives, `text` has a NUL behind it.
    unsafe {
        let text = CStr::from_ptr(text).to_str().unwrap();
        assert_eq!(text.len(), size);
        (*user.cast::<String>()).push_str(text);
    }
    0
}

#[track_caller]
fn answer(session: &Owned<mmq_session>) -> String {
    let mut text = String::new();
    // SAFETY: as above.
    succeed(|error| unsafe {
        mmq_session_generate(session.0, null(), Some(collect), (&raw mut text).cast(), null_mut(), error)
    });
    text
}

#[track_caller]
fn get(session: &Owned<mmq_session>, key: &str) -> i64 {
    let mut value = -1;
    // SAFETY: as above.
    succeed(|error| unsafe { mmq_session_get(session.0, c(key).as_ptr(), &mut value, error) });
    value
}

const DESCRIPTION: &str = "a red star at the top left, a white 4 in the center and a blue 5 at the bottom.";

#[test]
fn the_header_has_the_version() {
    let header = include_str!("mmq.h");
    assert!(header.contains(&format!("#define MMQ_ABI_VERSION {ABI_VERSION}\n")));
    assert!(header.lines().count() < 300);
    assert_eq!(mmq_abi_version(), ABI_VERSION);
    // SAFETY: a text of this library.
    assert_eq!(unsafe { CStr::from_ptr(mmq_version()) }.to_str(), Ok(env!("CARGO_PKG_VERSION")));
}

#[test]
fn null_is_an_error() {
    let engine = engine();
    let session = session(&engine, &[]);
    let image = image();
    let text = c("x");
    // SAFETY: null is what these calls are to notice.
    unsafe {
        let mut file = null_mut::<mmq_file>();
        fail(USAGE, "path is NULL", |e| mmq_file_path(null(), &mut file, e));
        fail(USAGE, "the file is NULL", |e| mmq_file_path(text.as_ptr(), null_mut(), e));
        fail(USAGE, "cannot be", |e| mmq_file_memory(null(), 5, None, null_mut(), &mut file, e));
        assert!(file.is_null());
        fail(USAGE, "engine is NULL", |e| mmq_engine_open(null(), null(), null(), 0, null(), null_mut(), e));
        let mut other = null_mut();
        fail(USAGE, "options is NULL", |e| mmq_engine_open(null(), null(), null(), 2, null(), &mut other, e));
        let no_key = mmq_option { key: null(), value: null() };
        fail(USAGE, "key is NULL", |e| mmq_engine_open(null(), null(), &no_key, 1, null(), &mut other, e));
        fail(USAGE, "engine is NULL", |e| mmq_engine_get(null(), text.as_ptr(), &mut 0, e));
        fail(USAGE, "value is NULL", |e| mmq_engine_get(engine.0, text.as_ptr(), null_mut(), e));
        fail(USAGE, "text is NULL", |e| mmq_engine_tokenize(engine.0, null(), null(), null_mut(), 0, &mut 0, e));
        let n = &mut 0;
        fail(USAGE, "no place", |e| mmq_engine_tokenize(engine.0, text.as_ptr(), null(), null_mut(), 1, n, e));
        fail(USAGE, "engine is NULL", |e| mmq_engine_count_image_tokens(null(), 1, 1, n, e));
        let mut none = null_mut();
        fail(USAGE, "file is NULL", |e| mmq_image_decode(null(), 9, null(), &mut none, e));
        fail(FORMAT, "empty", |e| mmq_image_decode(null(), 0, null(), &mut none, e));
        fail(USAGE, "pixels is NULL", |e| mmq_image_raw(null(), 4, 4, 0, 1, &mut none, e));
        fail(USAGE, "image is NULL", |e| mmq_engine_encode(engine.0, null(), null(), &mut null_mut(), e));
        fail(USAGE, "engine is NULL", |e| mmq_session_new(null(), null(), 0, &mut null_mut(), e));
        fail(USAGE, "session is NULL", |e| mmq_session_add_text(null_mut(), USER, text.as_ptr(), e));
        fail(USAGE, "image is NULL", |e| mmq_session_add_image(session.0, USER, null(), e));
        fail(USAGE, "embedding is NULL", |e| mmq_session_add_embedding(session.0, USER, null(), e));
        fail(USAGE, "session is NULL", |e| mmq_session_generate(null_mut(), null(), None, null_mut(), null_mut(), e));
        fail(USAGE, "session is NULL", |e| mmq_session_truncate(null_mut(), 0, e));
        fail(USAGE, "no pointer of this library", |e| mmq_session_truncate(session.0.byte_add(1), 0, e));
        // Nobody wants to know why.
        assert_eq!(mmq_session_add_image(session.0, USER, null(), null_mut()), USAGE);
        // What has no status has a harmless answer.
        mmq_task_cancel(null());
        assert_eq!((mmq_task_is_cancelled(null()), *mmq_engine_describe(null())), (0, 0));
        assert!(mmq_embedding_data(null(), n, null_mut()).is_null() && *n == 0);
        assert_eq!(*mmq_plan_json(null()), 0);
        assert!(mmq_plan_engine_options(null(), n).is_null() && mmq_plan_session_options(null(), null_mut()).is_null());
        mmq_plan_free(null_mut());
        mmq_file_free(null_mut());
        mmq_engine_free(null_mut());
        mmq_session_free(null_mut());
        mmq_image_free(null_mut());
        mmq_embedding_free(null_mut());
        mmq_task_free(null_mut());
        mmq_error_free(null_mut());
    }
    drop(image);
}

#[test]
fn what_makes_no_sense_is_an_error() {
    let engine = engine();
    let session = session(&engine, &[]);
    let open = |pairs: &[(&str, &str)]| {
        let options = options(pairs);
        // SAFETY: as above.
        outcome(|e| unsafe {
            mmq_engine_open(null(), null(), options.1.as_ptr(), options.1.len(), null(), &mut null_mut(), e)
        })
    };
    for (pairs, words) in [
        (&[("thread", "2")][..], "known are threads"),
        (&[("threads", "two")], "got \"two\""),
        (&[("load-mode", "fast")], "auto, mmap or repack"),
        (&[("image-tokens-by", "saliency")], "needs \"image-tokens\""),
        (&[("chat-template", "none such")], "none such"),
        (&[("image-fit", "stretch")], "stretch"),
    ] {
        let (status, message) = open(pairs);
        assert!(status == USAGE && message.contains(words), "{status}: {message}");
    }
    let new = |key: &str, value: &str, words: &str| {
        let options = options(&[(key, value)]);
        // SAFETY: as above.
        fail(USAGE, words, |e| unsafe { mmq_session_new(engine.0, options.1.as_ptr(), 1, &mut null_mut(), e) });
    };
    new("tempo", "1", "dynatemp-range");
    new("temp", "inf", "expected a number");
    new("top-p", "2", "top-p");
    new("ubatch-size", "0", "batch of 0");
    new("ctx-size", "-1", "ctx-size");
    new("cache-type-k", "q3", "q8_0");
    new("stop", "", "empty");
    new("logit-bias", "99999999=1", "99999999");
    new("logit-bias", "5:1", "15043=-1.5");
    // SAFETY: as above.
    unsafe {
        fail(USAGE, "no UTF-8: byte 1", |e| mmq_session_add_text(session.0, USER, c"a\xff".as_ptr(), e));
        fail(USAGE, "role 9", |e| mmq_session_add_text(session.0, 9, c"x".as_ptr(), e));
        fail(USAGE, "<__media__>", |e| mmq_session_add_text(session.0, USER, c"a <__media__>".as_ptr(), e));
        fail(USAGE, "it has n_answer", |e| mmq_session_get(session.0, c"n".as_ptr(), &mut 0, e));
        fail(USAGE, "it has has_vision", |e| mmq_engine_get(engine.0, c"n".as_ptr(), &mut 0, e));
        fail(USAGE, "is empty", |e| mmq_session_prefill(session.0, null(), e));
        add_text(&session, USER, "x");
        fail(USAGE, "mixed", |e| mmq_session_add_text(session.0, RAW, c"x".as_ptr(), e));
        fail(USAGE, "first", |e| mmq_session_add_text(session.0, SYSTEM, c"x".as_ptr(), e));
        add_text(&session, ASSISTANT, "y");
        fail(USAGE, "assistant's", |e| mmq_session_prefill(session.0, null(), e));
        let mut image = null_mut();
        let pixels = [0u8; 48];
        let mut raw = |width, height, stride, format, words: &str| {
            fail(USAGE, words, |e| mmq_image_raw(pixels.as_ptr().cast(), width, height, stride, format, &mut image, e));
        };
        raw(0, 4, 0, 1, "0x4");
        raw(usize::MAX, 2, 0, 1, "pixels");
        raw(4, 4, 11, 1, "12 bytes");
        raw(4, 4, usize::MAX / 2, 1, "stride");
        raw(4, 4, 0, 7, "MMQ_RGBA");
        fail(USAGE, "0x3", |e| mmq_engine_count_image_tokens(engine.0, 0, 3, &mut 0, e));
        fail(IO, "descriptor -1", |e| mmq_file_descriptor(-1, 0, 0, &mut null_mut(), e));
        let (status, message) = outcome(|e| mmq_image_decode(c"no picture".as_ptr().cast(), 10, null(), &mut image, e));
        assert!(status != OK && message.contains("not a picture"), "{message}");
    }
}

fn plan(pairs: &[(&str, &str)]) -> Owned<mmq_plan> {
    let options = options(pairs);
    made(mmq_plan_free, |place, error| {
        // SAFETY: as above.
        unsafe { mmq_plan_new(null(), null(), options.1.as_ptr(), options.1.len(), place, error) }
    })
}

#[test]
fn what_a_plan_chooses_opens_an_engine_and_a_session() {
    let json = |plan: &Owned<mmq_plan>| -> serde_json::Value {
        // SAFETY: a text of this library.
        serde_json::from_str(unsafe { CStr::from_ptr(mmq_plan_json(plan.0)) }.to_str().unwrap()).unwrap()
    };
    let free = json(&plan(&[("image-size", "64x64")]));
    let peak = free["peak"].as_u64().unwrap();
    let budget = (peak * 97 / 100).to_string();
    let wish = [("image-size", "64x64"), ("budget", &budget), ("cache-type-v", "q8_0")];
    let fitted = plan(&wish);
    let chosen = json(&fitted);
    assert!(chosen["peak"].as_u64().unwrap() <= peak * 97 / 100 && chosen["release_vision"] == true, "{chosen}");
    assert_eq!((&chosen["type_v"], &chosen["load_mode"]), (&"q8_0".into(), &"mmap".into()));

    let (mut n_engine, mut n_session) = (0, 0);
    // SAFETY: as above; the options live as long as the plan.
    let (engine, session) = unsafe {
        let options = mmq_plan_engine_options(fitted.0, &mut n_engine);
        let engine =
            made(mmq_engine_free, |place, e| mmq_engine_open(null(), null(), options, n_engine, null(), place, e));
        let options = mmq_plan_session_options(fitted.0, &mut n_session);
        let session = made(mmq_session_free, |place, e| mmq_session_new(engine.0, options, n_session, place, e));
        (engine, session)
    };
    assert_eq!((n_engine, n_session), (4, 4));
    assert_eq!(get(&session, "n_ctx"), chosen["n_ctx"].as_i64().unwrap());
    add_image(&session, &image());
    drop(engine);

    let refused = |pairs: &[(&str, &str)], status: mmq_status, words: &str| {
        let options = options(pairs);
        // SAFETY: as above.
        fail(status, words, |e| unsafe {
            mmq_plan_new(null(), null(), options.1.as_ptr(), options.1.len(), &mut null_mut(), e)
        });
    };
    refused(&[("budget", "1M")], 7, "does not fit 1M");
    refused(&[("budget", "much")], USAGE, "got \"much\"");
    refused(&[("image-size", "64")], USAGE, "expected 1024x768 or the like");
    refused(&[("ubatch-size", "0")], USAGE, "from 1 on");
    refused(&[("low-memory", "true")], USAGE, "from files alone");
    refused(&[("low-memory", "true"), ("load-mode", "repack")], USAGE, "alone");
    refused(&[("predict", "1")], USAGE, "known are budget");
}

#[test]
fn messages_speak_of_options_not_of_flags() {
    let engine = engine();
    let session = session(&engine, &[("ctx-size", "4")]);
    add_text(&session, USER, "Describe the picture.");
    // SAFETY: as above.
    let (status, message) = outcome(|e| unsafe { mmq_session_prefill(session.0, null(), e) });
    assert!(status == 6 && message.contains("raise ctx-size") && !message.contains(" -"), "{message}");
}

#[test]
fn panics_stop_at_the_edge() {
    // SAFETY: a place for an error.
    fail(PANIC, "a bug in mmq: 7 of 6 (src/ffi/tests.rs:", |e| unsafe { edge::run(e, || panic!("{} of 6", 7)) });
    let in_team = || -> edge::Result<()> {
        mmq_kernels::Team::new(2).run(8, &|part| assert!(part != 5, "part {part}"));
        Ok(())
    };
    // SAFETY: as above.
    fail(PANIC, "part 5", |e| unsafe { edge::run(e, in_team) });
    // The engine goes on, the session that it happened to does not.
    let engine = engine();
    let (broken, sound) = (session(&engine, &[]), session(&engine, &[]));
    // SAFETY: a session of this library.
    fail(PANIC, "oh", |e| unsafe { edge::run(e, || (*broken.0).with(|_| panic!("oh"))) });
    // SAFETY: as above.
    fail(PANIC, "is broken", |e| unsafe { mmq_session_truncate(broken.0, 0, e) });
    add_image(&sound, &image());
    add_text(&sound, USER, "Describe the picture.");
    assert_eq!(answer(&sound), DESCRIPTION);
}

#[test]
fn a_session_serves_one_call_at_a_time() {
    unsafe extern "C" fn again(session: *mut c_void, _: *const c_char, _: usize) -> i32 {
        // SAFETY: the session that calls back.
        fail(BUSY, "in use", |e| unsafe { mmq_session_truncate(session.cast(), 0, e) });
        1
    }
    let engine = engine();
    let session = session(&engine, &[]);
    add_text(&session, USER, "Describe the picture.");
    let mut finish = 0;
    // SAFETY: as above.
    succeed(|e| unsafe { mmq_session_generate(session.0, null(), Some(again), session.0.cast(), &mut finish, e) });
    assert_eq!((finish, get(&session, "n_messages")), (5, 2));
}

fn nano(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano").join(name)).unwrap()
}

#[track_caller]
fn describes(model: Owned<mmq_file>, mmproj: Owned<mmq_file>) {
    let engine = made(mmq_engine_free, |place, e| {
        // SAFETY: as above.
        unsafe { mmq_engine_open(model.0, mmproj.0, null(), 0, null(), place, e) }
    });
    drop((model, mmproj));
    let session = session(&engine, &[]);
    drop(engine);
    add_image(&session, &image());
    add_text(&session, USER, "Describe the picture.");
    assert_eq!(answer(&session), DESCRIPTION);
}

#[test]
fn models_lie_in_paths_descriptors_and_memory() {
    let path = |name: &str| {
        let path = c(&format!("{}/models/nano/{name}", env!("CARGO_MANIFEST_DIR")));
        // SAFETY: as above.
        made(mmq_file_free, |place, e| unsafe { mmq_file_path(path.as_ptr(), place, e) })
    };
    describes(path("nano.gguf"), path("mmproj-nano.gguf"));

    // Two assets in one package, at places that are aligned to nothing.
    let mut package = tempfile::tempfile().unwrap();
    let (model, mmproj) = (nano("nano.gguf"), nano("mmproj-nano.gguf"));
    package.write_all(&[&[7; 4099][..], &model, &mmproj].concat()).unwrap();
    let part = |offset: usize, size: usize| {
        let open = |place, e| {
            // SAFETY: as above.
            unsafe { mmq_file_descriptor(package.as_raw_fd(), offset as u64, size as u64, place, e) }
        };
        made(mmq_file_free, open)
    };
    let (first, second) = (part(4099, model.len()), part(4099 + model.len(), 0));
    let beyond = part(4099, usize::MAX / 4);
    // SAFETY: as above.
    fail(USAGE, "beyond the end", |e| unsafe {
        mmq_engine_open(beyond.0, null(), null(), 0, null(), &mut null_mut(), e)
    });
    drop(package);
    describes(first, second);

    static RELEASED: AtomicU32 = AtomicU32::new(0);
    unsafe extern "C" fn release(user: *mut c_void) {
        // SAFETY: the vector that was leaked for this.
        drop(unsafe { Box::from_raw(user.cast::<Vec<u8>>()) });
        RELEASED.fetch_add(1, Ordering::SeqCst);
    }
    let memory = |data: Vec<u8>| {
        let data = Box::into_raw(Box::new(data));
        made(mmq_file_free, |place, e| {
            // SAFETY: memory that lives until `release`.
            unsafe { mmq_file_memory((*data).as_ptr().cast(), (*data).len(), Some(release), data.cast(), place, e) }
        })
    };
    let (first, second) = (memory(model), memory(mmproj));
    assert_eq!(RELEASED.load(Ordering::SeqCst), 0);
    describes(first, second);
    assert_eq!(RELEASED.load(Ordering::SeqCst), 2);
    let damaged = memory(vec![1; 100]);
    // SAFETY: as above.
    fail(FORMAT, "memory", |e| unsafe { mmq_engine_open(damaged.0, null(), null(), 0, null(), &mut null_mut(), e) });
    drop(damaged);
    assert_eq!(RELEASED.load(Ordering::SeqCst), 3);
}

#[test]
fn conversations_go_on() {
    let engine = engine();
    let image = image();
    let session = session(&engine, &[]);
    add_image(&session, &image);
    add_text(&session, USER, "Describe the picture.");
    let mut counted = 0;
    // SAFETY: as above.
    succeed(|e| unsafe { mmq_session_count_tokens(session.0, null(), &mut counted, e) });
    let first = answer(&session);
    assert_eq!((first.as_str(), get(&session, "n_messages")), (DESCRIPTION, 2));
    assert_eq!(get(&session, "n_read"), counted as i64);
    add_text(&session, USER, "How many objects are there?");
    assert!(!answer(&session).is_empty());
    assert!(get(&session, "n_read") < counted as i64, "{} of {counted}", get(&session, "n_read"));
    // Again, from the first question on.
    // SAFETY: as above.
    succeed(|e| unsafe { mmq_session_truncate(session.0, 1, e) });
    assert_eq!((answer(&session), get(&session, "n_read")), (first, 1));

    // An embedding stands for its picture, here in text without a template.
    let embedding =
        // SAFETY: as above.
        made(mmq_embedding_free, |place, e| unsafe { mmq_engine_encode(engine.0, image.0, null(), place, e) });
    let (mut n_tokens, mut n_embd, mut expected, mut n) = (0, 0, 0, 0);
    // SAFETY: as above.
    unsafe {
        let rows = mmq_embedding_data(embedding.0, &mut n_tokens, &mut n_embd);
        assert!(std::slice::from_raw_parts(rows, n_tokens * n_embd).iter().any(|x| *x != 0.0));
        succeed(|e| mmq_image_size(image.0, &mut n, &mut expected, e));
        succeed(|e| mmq_engine_count_image_tokens(engine.0, n, expected, &mut n, e));
        assert_eq!((n, n_embd as i64), (n_tokens, (*engine.0).engine.n_embd() as i64));
    }
    let answers = [false, true].map(|embedded| {
        let raw = super::tests::session(&engine, &[("stop", "center")]);
        add_text(&raw, RAW, "USER: ");
        // SAFETY: as above.
        succeed(|e| unsafe {
            match embedded {
                true => mmq_session_add_embedding(raw.0, RAW, embedding.0, e),
                false => mmq_session_add_image(raw.0, RAW, image.0, e),
            }
        });
        add_text(&raw, RAW, "\nDescribe the picture. ASSISTANT:");
        answer(&raw)
    });
    assert!(answers[0] == answers[1] && !answers[0].is_empty() && !answers[0].contains("center"), "{answers:?}");
}

#[test]
fn pixels_come_in_several_layouts() {
    // SAFETY: an image of this library.
    let decoded = unsafe { (*image().0).pixels.clone() };
    let (width, height) = (decoded.width, decoded.height);
    for (format, order, n, gap) in
        [(1, [0, 1, 2], 3, 0), (1, [0, 1, 2], 3, 5), (2, [0, 1, 2], 4, 0), (3, [2, 1, 0], 4, 9)]
    {
        let stride = width * n + gap;
        let mut bytes = vec![255; stride * height - gap];
        for (i, rgb) in decoded.rgb.chunks_exact(3).enumerate() {
            let at = i / width * stride + i % width * n;
            order.iter().zip(rgb).for_each(|(channel, value)| bytes[at + channel] = *value);
        }
        let raw = made(mmq_image_free, |place, e| {
            // SAFETY: as above.
            unsafe { mmq_image_raw(bytes.as_ptr().cast(), width, height, stride, format, place, e) }
        });
        // SAFETY: as above.
        assert!(unsafe { (*raw.0).pixels == decoded }, "format {format}, stride {stride}");
    }
    // Half transparent black over white, and nothing at all.
    let pixels = [0_u8, 0, 0, 128, 9, 9, 9, 0];
    let raw = made(mmq_image_free, |place, e| {
        // SAFETY: as above.
        unsafe { mmq_image_raw(pixels.as_ptr().cast(), 2, 1, 0, 2, place, e) }
    });
    // SAFETY: as above.
    assert_eq!(unsafe { raw.0.as_ref() }.unwrap().pixels.rgb, [127, 127, 127, 255, 255, 255]);
}

/// What a task is told, and the thread that stops it in a phase.
struct Watcher {
    seen: Vec<(i32, f32)>,
    stop_in: i32,
    /// Asks the other thread to stop the task, and waits until it has.
    ask: mpsc::Sender<mpsc::Sender<()>>,
}

unsafe extern "C" fn watch(user: *mut c_void, phase: i32, done: f32) {
    // SAFETY: the watcher of the test.
    let watcher = unsafe { &mut *user.cast::<Watcher>() };
    watcher.seen.push((phase, done));
    // Not before the phase's work has begun.
    if phase == watcher.stop_in && done > 0.0 {
        let (send, stopped) = mpsc::channel();
        watcher.ask.send(send).unwrap();
        stopped.recv().unwrap();
    }
}

#[test]
fn another_thread_stops_each_phase() {
    let image = image();
    for phase in [1, 2, 3, 4] {
        let (ask, asked) = mpsc::channel::<mpsc::Sender<()>>();
        let mut watcher = Watcher { seen: Vec::new(), stop_in: phase, ask };
        let user: *mut c_void = (&raw mut watcher).cast();
        let task = Owned(mmq_task_new(Some(watch), None, user), mmq_task_free);
        let address = task.0 as usize;
        let stopper = std::thread::spawn(move || {
            let stopped = asked.recv().unwrap();
            // SAFETY: a task of this library, which lives until this thread has ended.
            unsafe { mmq_task_cancel(address as *const mmq_task) };
            stopped.send(()).unwrap();
        });
        let repack = options(&[("load-mode", "repack"), ("threads", "2")]);
        let mut engine = null_mut();
        // SAFETY: as above.
        let (status, message) =
            outcome(|e| unsafe { mmq_engine_open(null(), null(), repack.1.as_ptr(), 2, task.0, &mut engine, e) });
        assert_eq!((status, engine.is_null()), if phase == 1 { (CANCELLED, true) } else { (OK, false) }, "{message}");
        if phase > 1 {
            let engine = Owned(engine, mmq_engine_free);
            let session = session(&engine, &[("ubatch-size", "16"), ("ignore-eos", "true"), ("predict", "-1")]);
            add_image(&session, &image);
            add_text(&session, USER, "Describe the picture.");
            unsafe extern "C" fn on_text(user: *mut c_void, _: *const c_char, _: usize) -> i32 {
                // SAFETY: the watcher of the test.
                unsafe { watch(user, 4, 0.5) };
                0
            }
            // SAFETY: as above.
            let (status, _) =
                outcome(|e| unsafe { mmq_session_generate(session.0, task.0, Some(on_text), user, null_mut(), e) });
            assert_eq!(status, CANCELLED, "phase {phase}");
            assert_eq!(get(&session, "n_messages"), if phase == 4 { 2 } else { 1 });
            // It is as before, and answers when asked with another task.
            // SAFETY: as above.
            succeed(|e| unsafe { mmq_session_truncate(session.0, 1, e) });
            let limited = super::tests::session(&engine, &[]);
            add_image(&limited, &image);
            add_text(&limited, USER, "Describe the picture.");
            assert_eq!(answer(&limited), DESCRIPTION);
            // SAFETY: as above.
            succeed(|e| unsafe { mmq_session_prefill(session.0, null(), e) });
        }
        stopper.join().unwrap();
        // SAFETY: as above.
        assert_eq!(unsafe { mmq_task_is_cancelled(task.0) }, 1);
        let seen = &watcher.seen;
        assert_eq!(seen.last().unwrap().0, phase);
        assert!(seen.windows(2).all(|w| w[0].0 < w[1].0 || w[0].0 == w[1].0 && w[0].1 <= w[1].1), "{seen:?}");
        let ends: Vec<i32> = seen.iter().filter(|(p, done)| *p < phase && *done == 1.0).map(|(p, _)| *p).collect();
        assert_eq!(ends, (1..phase).collect::<Vec<_>>());
    }
}

#[test]
fn what_is_cancelled_beforehand_does_nothing() {
    let engine = engine();
    let task = Owned(mmq_task_new(None, None, null_mut()), mmq_task_free);
    let (file, image, text) = (sample(), image(), c("x"));
    // SAFETY: as above.
    unsafe {
        mmq_task_cancel(task.0);
        fail(CANCELLED, "stopped", |e| mmq_engine_open(null(), null(), null(), 0, task.0, &mut null_mut(), e));
        fail(CANCELLED, "stopped", |e| mmq_engine_encode(engine.0, image.0, task.0, &mut null_mut(), e));
        fail(CANCELLED, "stopped", |e| mmq_image_decode(file.as_ptr().cast(), file.len(), task.0, &mut null_mut(), e));
        fail(CANCELLED, "stopped", |e| mmq_engine_tokenize(engine.0, text.as_ptr(), task.0, null_mut(), 0, &mut 0, e));
    }
}

#[test]
fn sessions_are_kept_and_taken_up() {
    struct Watched {
        seen: Vec<(i32, f32)>,
        /// What is stopped at the first report; null: nothing.
        stop: *const mmq_task,
    }
    unsafe extern "C" fn see(user: *mut c_void, phase: i32, done: f32) {
        // SAFETY: what the test holds.
        unsafe {
            let watched = &mut *user.cast::<Watched>();
            watched.seen.push((phase, done));
            mmq_task_cancel(watched.stop);
        }
    }
    let engine = engine();
    let (first, second) = (session(&engine, &[]), session(&engine, &[]));
    add_text(&first, USER, "Describe the picture.");
    // SAFETY: as above.
    succeed(|e| unsafe { mmq_session_prefill(first.0, null(), e) });
    let n_past = get(&first, "n_past");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kept");
    let name = c(path.to_str().unwrap());
    // Stopped at the first report, each leaves everything as it was; then each goes through.
    for stops in [true, false] {
        for phase in [4, 5] {
            if phase == 5 && stops {
                // SAFETY: as above.
                succeed(|e| unsafe { mmq_session_save(first.0, name.as_ptr(), null(), e) });
            }
            let mut watched = Watched { seen: Vec::new(), stop: null() };
            let user: *mut c_void = (&raw mut watched).cast();
            let task = Owned(mmq_task_new(Some(see), None, user), mmq_task_free);
            if stops {
                // SAFETY: what `see` reads, while no call runs.
                unsafe { (*user.cast::<Watched>()).stop = task.0 };
            }
            // SAFETY: as above.
            let (status, message) = outcome(|e| unsafe {
                match phase {
                    4 => mmq_session_save(first.0, name.as_ptr(), task.0, e),
                    _ => mmq_session_restore(second.0, name.as_ptr(), task.0, e),
                }
            });
            assert_eq!(status, if stops { CANCELLED } else { OK }, "{message}");
            let whole = !stops;
            assert_eq!(watched.seen.last() == Some(&(phase, 1.0)), whole, "{:?}", watched.seen);
            assert_eq!(watched.seen.len() == 1, stops, "{:?}", watched.seen);
            if phase == 4 {
                assert_eq!(path.exists(), whole);
            } else {
                assert_eq!(get(&second, "n_past"), if whole { n_past } else { 0 });
            }
            if stops && phase == 5 {
                std::fs::remove_file(&path).unwrap();
            }
        }
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left behind");
}

#[test]
fn the_log_tells_what_happens() {
    unsafe extern "C" fn log(user: *mut c_void, level: i32, message: *const c_char) {
        // SAFETY: the list of the test.
        unsafe { (*user.cast::<Vec<String>>()).push(format!("{level} {}", CStr::from_ptr(message).to_str().unwrap())) };
    }
    let mut lines = Vec::<String>::new();
    let task = Owned(mmq_task_new(None, Some(log), (&raw mut lines).cast()), mmq_task_free);
    let engine = made(mmq_engine_free, |place, e| {
        // SAFETY: as above.
        unsafe { mmq_engine_open(null(), null(), null(), 0, task.0, place, e) }
    });
    let session = session(&engine, &[("ctx-size", "128")]);
    add_text(&session, USER, "Describe the picture.");
    // SAFETY: as above.
    succeed(|e| unsafe { mmq_session_generate(session.0, task.0, None, null_mut(), null_mut(), e) });
    assert!(lines[0].starts_with("1 nano.gguf: LLaMA"), "{lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("1 read ")), "{lines:?}");
}
