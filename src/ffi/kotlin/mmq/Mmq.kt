/** mmq for Kotlin, on Android and on desktops: `mmq.h` with coroutines, flows and [Closeable]. Needs JNA and kotlinx-coroutines. */
package mmq

import com.sun.jna.Callback
import com.sun.jna.Library
import com.sun.jna.Memory
import com.sun.jna.Native
import com.sun.jna.NativeLong
import com.sun.jna.Pointer
import com.sun.jna.ptr.IntByReference
import com.sun.jna.ptr.LongByReference
import com.sun.jna.ptr.NativeLongByReference
import com.sun.jna.ptr.PointerByReference
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.async
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.buffer
import kotlinx.coroutines.flow.channelFlow
import java.io.Closeable

/** What went wrong: [status] is one of `mmq.h`, the message is for people. */
class MmqException(val status: Int, message: String) : Exception(message)

/** The status of a call whose coroutine was cancelled, which ends as coroutines do. */
private const val CANCELLED = 8

enum class Phase { LOAD, ENCODE, PREFILL, SAVE, RESTORE }

enum class Role(internal val code: Int) { RAW(0), SYSTEM(1), USER(2), ASSISTANT(3) }

enum class PixelFormat(internal val code: Int, internal val bytes: Int) { RGB(1, 3), RGBA(2, 4), BGRA(3, 4) }

/** Told how far a phase is, from 0 to 1, on a thread of the library's choice. */
typealias Progress = (Phase, Float) -> Unit

/** Where a model lies. */
sealed class Source {
    /** A file; of a split model, any part. */
    data class Path(val path: String) : Source()

    /** [size] bytes (0: all the rest) from [offset] on of an open file: an uncompressed asset of an app. The caller closes it. */
    data class Descriptor(val fd: Int, val offset: Long = 0, val size: Long = 0) : Source()
}

private fun <T> withFile(source: Source?, use: (Pointer?) -> T): T {
    val file = when (source) {
        null -> return use(null)
        is Source.Path -> made { out, error -> C.mmq_file_path(source.path, out, error) }
        is Source.Descriptor -> made { out, error ->
            C.mmq_file_descriptor(source.fd, source.offset, source.size, out, error)
        }
    }
    return try { use(file) } finally { C.mmq_file_free(file) }
}

/** How much memory a run takes, as [json], and what makes it fit a budget, as options for [Engine.open] and [Engine.session]. */
class Plan private constructor(val json: String, val engine: Map<String, String>, val session: Array<Pair<String, String>>) {
    companion object {
        /** Reads the head of the files alone. For the options see `mmq_plan_new`: `"budget" to "1.5G"`. */
        fun of(model: Source?, mmproj: Source? = null, options: Map<String, String> = emptyMap()): Plan =
            withFile(model) { model ->
                withFile(mmproj) { mmproj ->
                    val pairs = pairs(options.toList())
                    val plan = made { out, error -> C.mmq_plan_new(model, mmproj, pairs, size(options.size), out, error) }
                    try {
                        val chosen = { of: (Pointer, NativeLongByReference) -> Pointer ->
                            val n = NativeLongByReference()
                            read(of(plan, n), n.value.toInt())
                        }
                        val json = C.mmq_plan_json(plan).getString(0, "UTF-8")
                        Plan(json, chosen(C::mmq_plan_engine_options).toMap(), chosen(C::mmq_plan_session_options).toTypedArray())
                    } finally {
                        C.mmq_plan_free(plan)
                    }
                }
            }

        /** [n] of `mmq_option`. */
        private fun read(options: Pointer, n: Int): List<Pair<String, String>> = List(n) { i ->
            val text = { at: Int -> options.getPointer(at.toLong() * Native.POINTER_SIZE).getString(0, "UTF-8") }
            text(2 * i) to text(2 * i + 1)
        }
    }
}

/** A loaded model, shared by any number of sessions and threads. Close it when no call uses it any more. */
class Engine private constructor(pointer: Pointer) : Handle(pointer, C::mmq_engine_free) {
    companion object {
        /** Loads a model; `null` is the one that is compiled into the library. For the options see `mmq.h`. */
        suspend fun open(
            model: Source?,
            mmproj: Source? = null,
            options: Map<String, String> = emptyMap(),
            progress: Progress = { _, _ -> },
        ): Engine = watched(progress) { task ->
            withFile(model) { model ->
                withFile(mmproj) { mmproj ->
                    val pairs = pairs(options.toList())
                    Engine(made { out, error -> C.mmq_engine_open(model, mmproj, pairs, size(options.size), task, out, error) })
                }
            }
        }
    }

    /** What it is, in a few words. */
    override fun toString(): String = C.mmq_engine_describe(pointer).getString(0, "UTF-8")

    /** `n_ctx_train`, `has_vision` and so on: see `mmq_engine_get`. */
    operator fun get(key: String): Long =
        LongByReference().also { value -> check { C.mmq_engine_get(pointer, key, value, it) } }.value

    /** Tokens that a picture of this size takes: known without encoding it. */
    fun countImageTokens(width: Int, height: Int): Int = counted { n, error ->
        C.mmq_engine_count_image_tokens(pointer, size(width), size(height), n, error)
    }

    /** A conversation. An option that may repeat stands in the list several times. */
    fun session(vararg options: Pair<String, String>): Session = Session(
        made { out, error -> C.mmq_session_new(pointer, pairs(options.asList()), size(options.size), out, error) },
    )

    /** Frees memory that can be had again: for `onTrimMemory`. */
    fun trim() = C.mmq_engine_trim(pointer)

    /** A row of floats for each token of a picture. */
    suspend fun encode(image: Image, progress: Progress = { _, _ -> }): List<FloatArray> = watched(progress) { task ->
        val embedding = made { out, error -> C.mmq_engine_encode(pointer, image.pointer, task, out, error) }
        try {
            val (rows, width) = NativeLongByReference() to NativeLongByReference()
            val data = C.mmq_embedding_data(embedding, rows, width)
            val n = width.value.toInt()
            List(rows.value.toInt()) { data.getFloatArray(4L * n * it, n) }
        } finally {
            C.mmq_embedding_free(embedding)
        }
    }
}

/** A picture. */
class Image private constructor(pointer: Pointer) : Handle(pointer, C::mmq_image_free) {
    companion object {
        /** Decodes a JPEG, PNG, WebP, GIF or BMP. */
        suspend fun decode(file: ByteArray): Image = watched({ _, _ -> }) { task ->
            Image(made { out, error -> C.mmq_image_decode(file, size(file.size), task, out, error) })
        }

        /** Copies pixels; rows lie [stride] bytes apart. */
        fun raw(pixels: ByteArray, width: Int, height: Int, format: PixelFormat, stride: Int = width * format.bytes): Image {
            require(width > 0 && height > 0 && pixels.size >= stride.toLong() * (height - 1) + width * format.bytes) {
                "${pixels.size} bytes for $width x $height pixels, $stride bytes a row"
            }
            return Image(made { out, error ->
                C.mmq_image_raw(pixels, size(width), size(height), size(stride), format.code, out, error)
            })
        }
    }
}

/** A conversation, for one caller at a time. Close it when no call uses it any more. */
class Session internal constructor(pointer: Pointer) : Handle(pointer, C::mmq_session_free) {
    /** Appends to the conversation. */
    fun add(role: Role, text: String) = check { C.mmq_session_add_text(pointer, role.code, text, it) }

    /** Appends a picture. It is encoded when the prompt is read. */
    fun add(role: Role, image: Image) = check { C.mmq_session_add_image(pointer, role.code, image.pointer, it) }

    /** Tokens that the conversation takes before the answer. */
    suspend fun countTokens(): Int = watched({ _, _ -> }) { task ->
        counted { n, error -> C.mmq_session_count_tokens(pointer, task, n, error) }
    }

    /** Reads the prompt ahead of [answer], to save time. */
    suspend fun prefill(progress: Progress = { _, _ -> }) =
        watched(progress) { task -> check { C.mmq_session_prefill(pointer, task, it) } }

    /** The answer, piece by piece. Cancelling its collector stops the model as soon as `mmq.h` says. */
    fun answer(progress: Progress = { _, _ -> }): Flow<String> = channelFlow {
        val onText = TextFn { _, text, size ->
            if (trySend(text.getByteArray(0, size.toInt()).decodeToString()).isSuccess) 0 else 1
        }
        watched(progress) { task -> check { C.mmq_session_generate(pointer, task, onText, null, IntByReference(), it) } }
    }.buffer(Channel.UNLIMITED)

    /** Forgets all but the first [n] messages. */
    fun truncate(n: Int) = check { C.mmq_session_truncate(pointer, size(n), it) }

    /** Keeps what the session has read in a file, pictures included. */
    suspend fun save(path: String, progress: Progress = { _, _ -> }) =
        watched(progress) { task -> check { C.mmq_session_save(pointer, path, task, it) } }

    /** Takes up what [save] has kept, with the same model. */
    suspend fun restore(path: String, progress: Progress = { _, _ -> }) =
        watched(progress) { task -> check { C.mmq_session_restore(pointer, path, task, it) } }

    /** `n_past`, `n_ctx`, `n_read` and so on: see `mmq_session_get`. */
    operator fun get(key: String): Long =
        LongByReference().also { value -> check { C.mmq_session_get(pointer, key, value, it) } }.value
}

/** An object of the library. Closing it twice is harmless, using it afterwards is an error. */
abstract class Handle internal constructor(pointer: Pointer, private val free: (Pointer) -> Unit) : Closeable {
    private var open: Pointer? = pointer

    internal val pointer: Pointer get() = checkNotNull(open) { "${this::class.simpleName} is closed" }

    @Synchronized
    override fun close() {
        open?.let(free)
        open = null
    }
}

/**
 * Runs [call] on a thread that may block, with a task that is cancelled when the coroutine is. Returns after the call has:
 * nothing that it uses is freed under it.
 */
private suspend fun <T> watched(progress: Progress, call: (Pointer) -> T): T {
    val onProgress = ProgressFn { _, phase, done -> progress(Phase.entries[phase - 1], done) }
    val task = C.mmq_task_new(onProgress, null, null)
    try {
        return coroutineScope {
            val running = async(Dispatchers.IO) {
                try {
                    call(task)
                } catch (e: MmqException) {
                    throw if (e.status == CANCELLED) CancellationException(e.message) else e
                }
            }
            try {
                running.await()
            } catch (e: CancellationException) {
                C.mmq_task_cancel(task)
                throw e
            }
        }
    } finally {
        C.mmq_task_free(task)
    }
}

/** Throws what a call fails with. */
private fun check(call: (PointerByReference) -> Int) {
    val error = PointerByReference()
    val status = call(error)
    if (status != 0) {
        val message = C.mmq_error_message(error.value).getString(0, "UTF-8")
        C.mmq_error_free(error.value)
        throw MmqException(status, message)
    }
}

private fun made(call: (PointerByReference, PointerByReference) -> Int): Pointer =
    PointerByReference().also { out -> check { call(out, it) } }.value

private fun counted(call: (NativeLongByReference, PointerByReference) -> Int): Int =
    NativeLongByReference().also { n -> check { call(n, it) } }.value.toInt()

private fun size(n: Int) = NativeLong(n.toLong())

/** An array of `mmq_option`. */
private fun pairs(options: List<Pair<String, String>>): Memory? {
    if (options.isEmpty()) return null
    val texts = options.flatMap { listOf(it.first, it.second) }.map { text ->
        Memory(text.toByteArray().size + 1L).apply { setString(0, text, "UTF-8") }
    }
    return Kept(texts).apply { texts.forEachIndexed { i, text -> setPointer(i.toLong() * Native.POINTER_SIZE, text) } }
}

/** Memory that points to [texts], which live as long. */
private class Kept(@Suppress("unused") private val texts: List<Memory>) : Memory(texts.size.toLong() * Native.POINTER_SIZE)

private fun interface ProgressFn : Callback {
    fun invoke(user: Pointer?, phase: Int, done: Float)
}

private fun interface TextFn : Callback {
    fun invoke(user: Pointer?, text: Pointer, size: NativeLong): Int
}

/** The functions of `mmq.h`. */
@Suppress("FunctionName")
private interface Functions : Library {
    fun mmq_abi_version(): Int
    fun mmq_error_message(error: Pointer?): Pointer
    fun mmq_error_free(error: Pointer?)
    fun mmq_task_new(progress: ProgressFn?, log: Callback?, user: Pointer?): Pointer
    fun mmq_task_cancel(task: Pointer)
    fun mmq_task_free(task: Pointer)
    fun mmq_file_path(path: String, file: PointerByReference, error: PointerByReference): Int
    fun mmq_file_descriptor(fd: Int, offset: Long, size: Long, file: PointerByReference, error: PointerByReference): Int
    fun mmq_file_free(file: Pointer)
    fun mmq_plan_new(
        model: Pointer?, mmproj: Pointer?, options: Pointer?, n: NativeLong, plan: PointerByReference, error: PointerByReference,
    ): Int
    fun mmq_plan_json(plan: Pointer): Pointer
    fun mmq_plan_engine_options(plan: Pointer, n: NativeLongByReference): Pointer
    fun mmq_plan_session_options(plan: Pointer, n: NativeLongByReference): Pointer
    fun mmq_plan_free(plan: Pointer)
    fun mmq_engine_open(
        model: Pointer?, mmproj: Pointer?, options: Pointer?, n: NativeLong, task: Pointer?, engine: PointerByReference,
        error: PointerByReference,
    ): Int
    fun mmq_engine_free(engine: Pointer)
    fun mmq_engine_trim(engine: Pointer)
    fun mmq_engine_describe(engine: Pointer): Pointer
    fun mmq_engine_get(engine: Pointer, key: String, value: LongByReference, error: PointerByReference): Int
    fun mmq_engine_count_image_tokens(
        engine: Pointer, width: NativeLong, height: NativeLong, n: NativeLongByReference, error: PointerByReference,
    ): Int
    fun mmq_engine_encode(
        engine: Pointer, image: Pointer, task: Pointer?, embedding: PointerByReference, error: PointerByReference,
    ): Int
    fun mmq_embedding_data(embedding: Pointer, n: NativeLongByReference, width: NativeLongByReference): Pointer
    fun mmq_embedding_free(embedding: Pointer)
    fun mmq_image_decode(
        data: ByteArray, size: NativeLong, task: Pointer?, image: PointerByReference, error: PointerByReference,
    ): Int
    fun mmq_image_raw(
        pixels: ByteArray, width: NativeLong, height: NativeLong, stride: NativeLong, format: Int,
        image: PointerByReference, error: PointerByReference,
    ): Int
    fun mmq_image_free(image: Pointer)
    fun mmq_session_new(
        engine: Pointer, options: Pointer?, n: NativeLong, session: PointerByReference, error: PointerByReference,
    ): Int
    fun mmq_session_free(session: Pointer)
    fun mmq_session_add_text(session: Pointer, role: Int, text: String, error: PointerByReference): Int
    fun mmq_session_add_image(session: Pointer, role: Int, image: Pointer, error: PointerByReference): Int
    fun mmq_session_count_tokens(session: Pointer, task: Pointer?, n: NativeLongByReference, error: PointerByReference): Int
    fun mmq_session_prefill(session: Pointer, task: Pointer?, error: PointerByReference): Int
    fun mmq_session_generate(
        session: Pointer, task: Pointer?, onText: TextFn?, user: Pointer?, finish: IntByReference, error: PointerByReference,
    ): Int
    fun mmq_session_truncate(session: Pointer, n: NativeLong, error: PointerByReference): Int
    fun mmq_session_save(session: Pointer, path: String, task: Pointer?, error: PointerByReference): Int
    fun mmq_session_restore(session: Pointer, path: String, task: Pointer?, error: PointerByReference): Int
    fun mmq_session_get(session: Pointer, key: String, value: LongByReference, error: PointerByReference): Int
}

private val C: Functions = Native.load("mmq", Functions::class.java, mapOf(Library.OPTION_STRING_ENCODING to "UTF-8"))
    .also { check(it.mmq_abi_version() == 1) { "libmmq has another ABI: ${it.mmq_abi_version()}" } }
