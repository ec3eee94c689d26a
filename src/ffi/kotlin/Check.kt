/** What check.sh runs: the binding against the built-in model's files. Throws if anything is not as it should be. */
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import mmq.Engine
import mmq.Image
import mmq.MmqException
import mmq.Phase
import mmq.PixelFormat
import mmq.Plan
import mmq.Role
import mmq.Source
import java.io.File

fun main() = runBlocking {
    val phases = mutableListOf<Phase>()
    val engine = Engine.open(
        Source.Path("models/nano/nano.gguf"), Source.Path("models/nano/mmproj-nano.gguf"), mapOf("threads" to "2"),
    ) { phase, done -> if (done == 1f) phases += phase }
    println(engine)
    check(phases == listOf(Phase.LOAD)) { "$phases" }
    val image = Image.decode(File("models/nano/sample.png").readBytes())

    engine.session("temp" to "0", "predict" to "64").use { session ->
        session.add(Role.USER, image)
        session.add(Role.USER, "Describe the picture.")
        val counted = session.countTokens()
        val answer = session.answer().toList()
        println(answer.joinToString("|"))
        check(answer.size > 5 && answer.joinToString("").startsWith("a red star at the top left")) { "$answer" }
        check(session["n_read"] == counted.toLong() && session["n_messages"] == 2L)
        val rows = engine.encode(image)
        check(rows.size == engine.countImageTokens(96, 96) && rows[0].size.toLong() == engine["n_embd"])
    }

    // What a plan chooses; what was read is kept in a file.
    val files = Source.Path("models/nano/nano.gguf") to Source.Path("models/nano/mmproj-nano.gguf")
    val plan = Plan.of(files.first, files.second, mapOf("ctx-size" to "512", "image-size" to "96x96"))
    check("\"peak\"" in plan.json && plan.engine["load-mode"] == "mmap" && "ctx-size" to "512" in plan.session)
    val kept = File.createTempFile("mmq", ".session")
    val past = Engine.open(files.first, files.second, plan.engine).use { planned ->
        planned.session(*plan.session).use { session ->
            session.add(Role.USER, image)
            session.add(Role.USER, "Describe the picture.")
            session.prefill()
            session.save(kept.path)
            session["n_past"]
        }
    }
    engine.session(*plan.session).use { session ->
        session.restore(kept.path)
        check(session["n_past"] == past && past > 0) { "$past" }
    }
    kept.delete()

    // A collector that goes away stops the model; the session answers again.
    engine.session("temp" to "0", "ignore-eos" to "true", "ctx-size" to "100000").use { session ->
        session.add(Role.RAW, "a red star and")
        check(session.answer().first().isNotEmpty())
        val begun = Channel<Unit>(Channel.CONFLATED)
        val job = launch {
            try {
                session.answer().collect { begun.send(Unit) }
                error("an answer without end has ended")
            } catch (e: CancellationException) {
                println("cancelled")
                throw e
            }
        }
        begun.receive()
        val start = System.nanoTime()
        job.cancelAndJoin()
        println("after %.1f ms".format((System.nanoTime() - start) / 1e6))
        check(session["n_past"] > 0)
    }

    try {
        engine.session("temp" to "warm")
        error("not refused")
    } catch (e: MmqException) {
        println("${e.status}: ${e.message}")
        check(e.status == 1 && "warm" in e.message!!)
    }
    Image.raw(ByteArray(3 * 32 * 32), 32, 32, PixelFormat.RGB).close()
    image.close()
    engine.close()
    engine.close()
}
