/** A picture, a question, an answer that streams in and stops when the user says so. */
package dev.mmq.example

import android.content.ComponentCallbacks2
import android.os.Bundle
import android.widget.Button
import android.widget.EditText
import android.widget.LinearLayout
import android.widget.TextView
import androidx.activity.ComponentActivity
import androidx.activity.result.PickVisualMediaRequest
import androidx.activity.result.contract.ActivityResultContracts.PickVisualMedia
import androidx.lifecycle.lifecycleScope
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import mmq.Engine
import mmq.Image
import mmq.MmqException
import mmq.Phase
import mmq.Role
import mmq.Source

class MainActivity : ComponentActivity() {
    private lateinit var question: EditText
    private lateinit var status: TextView
    private lateinit var answer: TextView
    private var engine: Engine? = null
    private var asking: Job? = null

    private val pick = registerForActivityResult(PickVisualMedia()) { uri ->
        if (uri != null) ask { contentResolver.openInputStream(uri)!!.use { it.readBytes() } }
    }

    override fun onCreate(saved: Bundle?) {
        super.onCreate(saved)
        question = EditText(this).apply { setText("What is in this picture?") }
        status = TextView(this)
        answer = TextView(this)
        val choose = Button(this).apply {
            text = "Ask about a picture"
            setOnClickListener { pick.launch(PickVisualMediaRequest(PickVisualMedia.ImageOnly)) }
        }
        val stop = Button(this).apply {
            text = "Stop"
            setOnClickListener { asking?.cancel() }
        }
        setContentView(LinearLayout(this).apply {
            orientation = LinearLayout.VERTICAL
            setPadding(32, 96, 32, 32)
            listOf(question, choose, stop, status, answer).forEach(::addView)
        })
    }

    /** The model in the app's package, mapped where it lies. */
    private suspend fun loaded(): Engine = engine ?: run {
        val (model, mmproj) = assets.openFd("model.gguf") to assets.openFd("mmproj.gguf")
        model.use {
            mmproj.use {
                val sources = listOf(model, mmproj).map { Source.Descriptor(it.parcelFileDescriptor.fd, it.startOffset, it.length) }
                Engine.open(sources[0], sources[1], progress = ::show).also { engine = it }
            }
        }
    }

    private fun show(phase: Phase, done: Float) = runOnUiThread { status.text = "$phase: ${(done * 100).toInt()} %" }

    private fun ask(read: () -> ByteArray) {
        val last = asking
        asking = lifecycleScope.launch {
            last?.cancelAndJoin()
            answer.text = ""
            try {
                val engine = loaded()
                Image.decode(withContext(Dispatchers.IO) { read() }).use { image ->
                    engine.session("ctx-size" to "4096").use { session ->
                        session.add(Role.USER, image)
                        session.add(Role.USER, question.text.toString())
                        session.answer(::show).collect { answer.append(it) }
                    }
                }
                status.text = ""
            } catch (e: CancellationException) {
                status.text = "Stopped"
                throw e
            } catch (e: MmqException) {
                status.text = e.message
            }
        }
    }

    override fun onTrimMemory(level: Int) {
        super.onTrimMemory(level)
        if (level >= ComponentCallbacks2.TRIM_MEMORY_RUNNING_LOW) engine?.trim()
    }

    override fun onDestroy() {
        super.onDestroy()
        // What is being asked ends first: its session must not lose its engine.
        val (running, engine) = asking to engine
        if (running == null) engine?.close() else running.invokeOnCompletion { engine?.close() }
    }
}
