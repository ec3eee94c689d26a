/* mmq: vision-language models on the device. A GGUF model and a picture in, text out.
 *
 *     mmq_file *model, *mmproj;  mmq_engine *engine;  mmq_session *session;  mmq_error *error = NULL;
 *     mmq_file_path("model.gguf", &model, &error);
 *     mmq_file_path("mmproj.gguf", &mmproj, &error);
 *     mmq_engine_open(model, mmproj, NULL, 0, NULL, &engine, &error);
 *     mmq_session_new(engine, NULL, 0, &session, &error);
 *     mmq_session_add_image(session, MMQ_USER, image, &error);
 *     mmq_session_add_text(session, MMQ_USER, "What is this?", &error);
 *     mmq_session_generate(session, NULL, on_text, user, NULL, &error);
 *
 * Each of these may fail: see examples/c/describe.c for the whole program.
 *
 * Objects are made by the library and freed by the mmq_..._free of their type, which takes NULL too. In any order: a session
 * keeps what it needs of its engine, an engine of its files. All text is UTF-8 and ends with NUL.
 *
 * Errors. A function that can fail returns a status and, unless `error` is NULL, makes an error object, which the caller
 * frees. `*error` is written only then. New objects are NULL after a failure. NULL, misaligned and contradictory arguments
 * and text that is no UTF-8 are errors; freed objects, and memory shorter than it is said to be, cannot be noticed.
 *
 * Threads. Every function may be called on any thread. Engines, images, embeddings and files do not change and may be used
 * by several threads at once; so may a task. A session may move from thread to thread, but is used by one call at a time:
 * another one meanwhile is MMQ_BUSY. Nothing may be freed while a call uses it. Callbacks are called on the thread that
 * made the call, before it returns; they may use other objects, must not use the session of that call, and must not leave by
 * an exception or longjmp. `release` of mmq_file_memory may be called on any thread.
 *
 * The library writes to no standard stream, never exits, and aborts only if the system refuses a small piece of memory. A
 * bug in it becomes MMQ_PANIC; a session that it happened to goes on failing.
 */
#ifndef MMQ_H
#define MMQ_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Version of this interface. Functions, keys and statuses may be added without a new one. */
#define MMQ_ABI_VERSION 1

/* That of the library at hand: refuse to run if it is not MMQ_ABI_VERSION. */
uint32_t mmq_abi_version(void);
/* The library's own version: "0.1.0". Not to be freed. */
const char *mmq_version(void);

/* ---- Errors ---- */

typedef int32_t mmq_status;
enum {
    MMQ_OK = 0,
    MMQ_USAGE = 1,        /* an argument makes no sense */
    MMQ_IO = 2,           /* a file cannot be read or written */
    MMQ_FORMAT = 3,       /* a file is damaged */
    MMQ_UNSUPPORTED = 4,  /* well-formed, but this library cannot run it */
    MMQ_MISMATCH = 5,     /* two parts do not fit: model and mmproj, say */
    MMQ_CONTEXT_FULL = 6, /* the prompt is longer than the context */
    MMQ_MEMORY = 7,       /* too little memory, or a picture beyond the limit of 100 million pixels */
    MMQ_CANCELLED = 8,    /* mmq_task_cancel was called */
    MMQ_FAILED = 9,       /* a check did not hold */
    MMQ_BUSY = 10,        /* the session is in use by another call */
    MMQ_PANIC = 11        /* a bug in the library: please report the message */
};

typedef struct mmq_error mmq_error;
mmq_status mmq_error_status(const mmq_error *error);
/* One sentence for people; lives as long as the error. */
const char *mmq_error_message(const mmq_error *error);
void mmq_error_free(mmq_error *error);

/* ---- Options ---- */

/* Keys are the program's flags without hyphens: { "ctx-size", "4096" }. Of a key that comes twice the last counts, but where
 * it says "may repeat". An unknown key or a value that makes no sense is an MMQ_USAGE error that names it. Arrays of options
 * may be NULL if their length is 0. */
typedef struct mmq_option {
    const char *key;
    const char *value;
} mmq_option;

/* ---- Tasks ---- */

/* What watches and stops calls that take long. It may be given to several calls, also at once; NULL: nobody watches. Once
 * cancelled, it stays so: make a task for each thing that a user may stop. */
typedef struct mmq_task mmq_task;

/* Phases, in the order in which a call comes to them. */
enum { MMQ_LOAD = 1, MMQ_ENCODE = 2, MMQ_PREFILL = 3, MMQ_SAVE = 4, MMQ_RESTORE = 5 };
enum { MMQ_INFO = 1, MMQ_WARNING = 2 }; /* levels */

/* `done` goes from 0 to 1 within a phase and never back. */
typedef void (*mmq_progress_fn)(void *user, int32_t phase, float done);
/* What a developer may want to know. `message` lives until the callback returns. */
typedef void (*mmq_log_fn)(void *user, int32_t level, const char *message);

/* Either callback may be NULL. */
mmq_task *mmq_task_new(mmq_progress_fn progress, mmq_log_fn log, void *user);
/* Stops the calls that run with the task, and those that will: they return MMQ_CANCELLED within 50 ms, unless the system lets
 * them wait for a processor or a disk, be they busy reading files, repacking weights, with pictures, with the prompt or with
 * the answer. Does not wait for them: a thread of the library may give memory back a little later. May be called on any
 * thread, from callbacks, and in a signal handler. */
void mmq_task_cancel(const mmq_task *task);
int32_t mmq_task_is_cancelled(const mmq_task *task);
void mmq_task_free(mmq_task *task);

/* ---- Files ---- */

/* Where a model lies. Nothing is read before mmq_engine_open, after which it may be freed. */
typedef struct mmq_file mmq_file;

/* A file is mapped into memory and must not change while an engine uses it. Of a split model, any part. */
mmq_status mmq_file_path(const char *path, mmq_file **file, mmq_error **error);
/* `size` bytes from `offset` on (0: all the rest) of an open file. The descriptor is duplicated: the caller closes its own.
 * For an uncompressed asset in an Android package: what AssetFileDescriptor says. Not on Windows. */
mmq_status mmq_file_descriptor(int descriptor, uint64_t offset, uint64_t size, mmq_file **file, mmq_error **error);
/* `size` bytes in memory, which stay the caller's, are not copied, and must not change until `release(user)` is called: once,
 * when the file and all engines opened from it are freed. Without `release` (NULL) the caller keeps count. If the call itself
 * fails, `release` is not called. */
mmq_status mmq_file_memory(const void *data, size_t size, void (*release)(void *user), void *user, mmq_file **file,
                           mmq_error **error);
void mmq_file_free(mmq_file *file);

/* ---- Memory ---- */

/* How much memory a run takes, and what makes it fit a budget. */
typedef struct mmq_plan mmq_plan;

/* Reads names and shapes of the files' tensors, no weights. Options; what is not given is the plan's to choose:
 *   budget            most memory, the program's own included: "1.5G", "800M", "1.4GiB"; otherwise what a run takes as it is
 *   images            pictures of a conversation (1); image-size: their pixels ("1024x768")
 *   low-memory        true: layers are read from the file each time, as many as must
 *   load-mode, vision-precision, image-tokens, image-tokens-by       as of engines
 *   ctx-size, ubatch-size, cache-type-k, -v                          as of sessions
 * If nothing fits it fails with MMQ_MEMORY, and says what would. */
mmq_status mmq_plan_new(const mmq_file *model, const mmq_file *mmproj, const mmq_option *options, size_t n_options,
                        mmq_plan **plan, mmq_error **error);
/* The plan as a JSON object: what is chosen, bytes of each of the "parts", most bytes in each of the "phases", and "peak". */
const char *mmq_plan_json(const mmq_plan *plan);
/* What is chosen, for mmq_engine_open and mmq_session_new. All three live as long as the plan. */
const mmq_option *mmq_plan_engine_options(const mmq_plan *plan, size_t *n_options);
const mmq_option *mmq_plan_session_options(const mmq_plan *plan, size_t *n_options);
void mmq_plan_free(mmq_plan *plan);

/* ---- Engines ---- */

/* A loaded model. */
typedef struct mmq_engine mmq_engine;

/* Loads `model`, and for pictures its `mmproj` (NULL: none, or both in one file). `model` NULL: the small model that is
 * compiled into the library, if it is ("nano"). Options:
 *   threads           0: the physical cores
 *   load-mode         auto, mmap (weights stay in the file) or repack (copied into memory: slower to load, faster to run)
 *   vision-precision  auto, f32 or int8
 *   image-tokens      most tokens of a picture; 0: as many as the model makes
 *   image-tokens-by   how they are made fewer: saliency, coverage or downsample
 *   chat-template     name of a built-in one, or Jinja text; otherwise the model's own
 *   image-fit         crop, pad, squash or anyres; image-filter: bicubic, bilinear, lanczos or box
 *   image-cache       a folder of their own for encoded pictures, so that they are not encoded again; image-cache-size: most
 *                     bytes in it (1073741824); image-cache-memory: most bytes of them in memory (134217728)
 *   power             low, balanced or fast: how much of the processor is used
 *   release-vision    true: the vision encoder leaves memory after each picture
 *   resident-layers   so many layers stay in memory, the others are read from the file each time */
mmq_status mmq_engine_open(const mmq_file *model, const mmq_file *mmproj, const mmq_option *options, size_t n_options,
                           const mmq_task *task, mmq_engine **engine, mmq_error **error);
void mmq_engine_free(mmq_engine *engine);
/* Frees memory that can be had again: call it when the system is short of it. Sessions go on as before. */
void mmq_engine_trim(const mmq_engine *engine);
/* What it is, in a few words; lives as long as the engine. */
const char *mmq_engine_describe(const mmq_engine *engine);
/* Keys: has_vision, n_bytes, n_ctx_train, n_embd, n_params, n_threads, n_vocab. */
mmq_status mmq_engine_get(const mmq_engine *engine, const char *key, int64_t *value, mmq_error **error);
/* Tokens of a text as it stands, with the model's beginning-of-sequence token. At most `capacity` of them go to `tokens`;
 * `*n_tokens` is how many there are. */
mmq_status mmq_engine_tokenize(const mmq_engine *engine, const char *text, const mmq_task *task, uint32_t *tokens,
                               size_t capacity, size_t *n_tokens, mmq_error **error);
/* How many tokens a picture of this size takes in a prompt: known without encoding it. */
mmq_status mmq_engine_count_image_tokens(const mmq_engine *engine, size_t width, size_t height, size_t *n_tokens,
                                         mmq_error **error);

/* ---- Pictures ---- */

typedef struct mmq_image mmq_image;

enum { MMQ_RGB = 1, MMQ_RGBA = 2, MMQ_BGRA = 3 }; /* 8 bits a channel in this order; alpha not premultiplied */

/* Decodes a JPEG, PNG, WebP, GIF, BMP, or TIFF where that is built in, turned upright; transparent pixels are laid over white.
 * If it is cancelled, a thread of the library may finish decoding a copy of `data` in the background. */
mmq_status mmq_image_decode(const void *data, size_t size, const mmq_task *task, mmq_image **image, mmq_error **error);
/* Copies pixels: `height` rows from the top, each `stride` bytes behind the one before (0: without a gap). */
mmq_status mmq_image_raw(const void *pixels, size_t width, size_t height, size_t stride, int32_t format,
                         mmq_image **image, mmq_error **error);
mmq_status mmq_image_size(const mmq_image *image, size_t *width, size_t *height, mmq_error **error);
void mmq_image_free(mmq_image *image);

/* What an engine makes of a picture: a row of floats for each of its tokens. */
typedef struct mmq_embedding mmq_embedding;

mmq_status mmq_engine_encode(const mmq_engine *engine, const mmq_image *image, const mmq_task *task,
                             mmq_embedding **embedding, mmq_error **error);
/* [n_tokens][n_embd] floats that live as long as the embedding. */
const float *mmq_embedding_data(const mmq_embedding *embedding, size_t *n_tokens, size_t *n_embd);
void mmq_embedding_free(mmq_embedding *embedding);

/* ---- Sessions ---- */

/* A conversation. */
typedef struct mmq_session mmq_session;

/* Options:
 *   ctx-size          most tokens in the context; 0: as many as the model was trained with
 *   context-shift     true: when the context is full, whole oldest turns leave, pictures included; false: the answer ends
 *   ubatch-size       most tokens that go through the model at once (512)
 *   cache-type-k, -v  f16, f32, q8_0 or q4_0
 *   predict           most tokens of an answer; -1: until the model ends it
 *   stop              text that ends an answer and is no part of it; may repeat
 *   seed              -1: another one each time
 *   temp (0.8; 0: always the likeliest token), top-k (40), top-p (0.95), min-p (0.05), top-nsigma, typical,
 *   xtc-probability, xtc-threshold, repeat-last-n, repeat-penalty, presence-penalty, frequency-penalty, dry-multiplier,
 *   dry-base, dry-allowed-length, dry-penalty-last-n, dry-sequence-breaker (may repeat), dynatemp-range, dynatemp-exp,
 *   mirostat, mirostat-lr, mirostat-ent, adaptive-target, adaptive-decay, samplers ("top_k;top_p;temperature"),
 *   logit-bias ("15043=-1.5"; may repeat), ignore-eos ("true") */
mmq_status mmq_session_new(const mmq_engine *engine, const mmq_option *options, size_t n_options, mmq_session **session,
                           mmq_error **error);
void mmq_session_free(mmq_session *session);

/* Who says something. Messages are written with the chat template. MMQ_RAW: text and pictures as they stand, without a
 * template; not to be mixed with the others in a session. */
enum { MMQ_RAW = 0, MMQ_SYSTEM = 1, MMQ_USER = 2, MMQ_ASSISTANT = 3 };

/* Appends to the conversation: to its last message if that is of the same role, else a new one. Cheap: pictures are encoded
 * when the prompt is read. Embeddings must come from the session's engine. */
mmq_status mmq_session_add_text(mmq_session *session, int32_t role, const char *text, mmq_error **error);
mmq_status mmq_session_add_image(mmq_session *session, int32_t role, const mmq_image *image, mmq_error **error);
mmq_status mmq_session_add_embedding(mmq_session *session, int32_t role, const mmq_embedding *embedding,
                                     mmq_error **error);
/* How many tokens of the context the conversation will take before the answer, pictures and template included. */
mmq_status mmq_session_count_tokens(mmq_session *session, const mmq_task *task, size_t *n_tokens, mmq_error **error);
/* Encodes pictures and reads the prompt, of which only what is new. mmq_session_generate does it too; ahead of it, it saves
 * time. */
mmq_status mmq_session_prefill(mmq_session *session, const mmq_task *task, mmq_error **error);

/* A piece of an answer: `size` bytes, whole characters, NUL behind them. Anything but 0 ends the answer. */
typedef int32_t (*mmq_text_fn)(void *user, const char *text, size_t size);

/* Why an answer ended: by the model, by a "stop" text, after "predict" tokens, as the context is full, by on_text. */
enum { MMQ_END_OF_TURN = 1, MMQ_STOP = 2, MMQ_LENGTH = 3, MMQ_NO_ROOM = 4, MMQ_STOPPED = 5 };

/* Answers. What on_text was told becomes the assistant's message (raw text: its continuation), also if it was cancelled or
 * stopped on the way. After MMQ_CANCELLED with no text, and after other failures, the conversation is as it was. on_text and
 * finish may be NULL. */
mmq_status mmq_session_generate(mmq_session *session, const mmq_task *task, mmq_text_fn on_text, void *user,
                                int32_t *finish, mmq_error **error);
/* Forgets all but the first `n_messages` messages: 0 to begin anew, one less to answer again. What the model has read of those
 * that stay is not read again. */
mmq_status mmq_session_truncate(mmq_session *session, size_t n_messages, mmq_error **error);
/* Frees buffers that can be had again. */
mmq_status mmq_session_trim(mmq_session *session, mmq_error **error);
/* Keeps what the session has read in a file, pictures included, and takes it up again, with the same model: when the same
 * messages are added, what the file holds is not read again. A damaged file, or another model's, is an error. Long sessions
 * take a gigabyte: a stopped save leaves the file, a stopped restore the session as it was. */
mmq_status mmq_session_save(mmq_session *session, const char *path, const mmq_task *task, mmq_error **error);
mmq_status mmq_session_restore(mmq_session *session, const char *path, const mmq_task *task, mmq_error **error);
/* Keys: n_ctx, n_messages, n_past (positions in use), seed; of the last answer n_read (tokens that had to be read) and
 * n_answer (tokens made). */
mmq_status mmq_session_get(mmq_session *session, const char *key, int64_t *value, mmq_error **error);

#ifdef __cplusplus
}
#endif

#endif
