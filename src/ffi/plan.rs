//! How much memory a run takes, known before it: the planner's choice as JSON, and as options for the engine and the session.

use super::edge::{self, usage};
use super::engine::{Files, mmq_file};
use super::error::{c_string, mmq_error, mmq_status};
use super::options::{self, mmq_option};
use crate::pipelines::plan::{Plan, Planner};
use std::ffi::{CStr, CString, c_char};

/// What a run takes, and what it is to be.
#[allow(non_camel_case_types)]
pub struct mmq_plan {
    json: CString,
    engine: Options,
    session: Options,
}

/// Options that the caller reads.
struct Options {
    pairs: Vec<mmq_option>,
    /// What the pairs point to.
    _values: Vec<CString>,
}

impl Options {
    fn new(options: Vec<(&'static CStr, String)>) -> Options {
        let (keys, values): (Vec<_>, Vec<_>) = options.into_iter().map(|(key, value)| (key, c_string(value))).unzip();
        let pair = |(key, value): (&&CStr, &CString)| mmq_option { key: key.as_ptr(), value: value.as_ptr() };
        Options { pairs: keys.iter().zip(&values).map(pair).collect(), _values: values }
    }

    unsafe fn give(&self, n_options: *mut usize) -> *const mmq_option {
        // SAFETY: the caller of the C function gives null or a place that can be written.
        if let Some(n) = unsafe { n_options.as_mut() } {
            *n = self.pairs.len();
        }
        self.pairs.as_ptr()
    }
}

impl mmq_plan {
    fn new(plan: &Plan, precision: &str) -> mmq_plan {
        let mut engine = vec![
            (c"load-mode", plan.load_mode.name().to_owned()),
            (c"vision-precision", precision.to_owned()),
            (c"image-cache-memory", plan.parts.image_rows.to_string()),
            (c"release-vision", plan.release_vision.to_string()),
        ];
        if let Some(tokens) = plan.image_tokens {
            engine.push((c"image-tokens", tokens.n.to_string()));
            engine.push((c"image-tokens-by", tokens.by.name().to_owned()));
        }
        engine.extend(plan.resident_layers.map(|n| (c"resident-layers", n.to_string())));
        let session = vec![
            (c"ctx-size", plan.n_ctx.to_string()),
            (c"ubatch-size", plan.n_ubatch.to_string()),
            (c"cache-type-k", plan.type_k.name().to_owned()),
            (c"cache-type-v", plan.type_v.name().to_owned()),
        ];
        let json = format!("{:#}", serde_json::to_value(plan).expect("a plan is plain data"));
        mmq_plan { json: c_string(json), engine: Options::new(engine), session: Options::new(session) }
    }
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_plan_new(
    model: *const mmq_file,
    mmproj: *const mmq_file,
    options: *const mmq_option,
    n_options: usize,
    plan: *mut *mut mmq_plan,
    error: *mut *mut mmq_error,
) -> mmq_status {
    // SAFETY: the caller's pointers, as `mmq.h` says.
    unsafe {
        edge::run(error, || {
            let place = edge::new_place("the plan", plan)?;
            let pairs = options::pairs(options, n_options)?;
            let (wish, precision) = options::plan(&pairs)?;
            let (model, mmproj) = Files::of(model, mmproj)?.open()?;
            if wish.low_memory && model.path().is_none() {
                return Err(usage("option \"low-memory\": layers stream from files alone".into()));
            }
            let plan = Planner::new(&model, mmproj.as_ref())?.plan(&wish)?;
            *place = Box::into_raw(Box::new(mmq_plan::new(&plan, precision)));
            Ok(())
        })
    }
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_plan_json(plan: *const mmq_plan) -> *const c_char {
    // SAFETY: the caller's promise.
    unsafe { plan.as_ref() }.map_or(c"".as_ptr(), |plan| plan.json.as_ptr())
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_plan_engine_options(plan: *const mmq_plan, n_options: *mut usize) -> *const mmq_option {
    // SAFETY: the caller's promise.
    unsafe { plan.as_ref().map_or(std::ptr::null(), |plan| plan.engine.give(n_options)) }
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_plan_session_options(plan: *const mmq_plan, n_options: *mut usize) -> *const mmq_option {
    // SAFETY: the caller's promise.
    unsafe { plan.as_ref().map_or(std::ptr::null(), |plan| plan.session.give(n_options)) }
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_plan_free(plan: *mut mmq_plan) {
    // SAFETY: the caller's promise.
    unsafe { edge::free(plan) }
}
