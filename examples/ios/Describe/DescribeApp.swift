/// A picture from the library, a question, an answer that streams in and stops when the user says so.
import Mmq
import PhotosUI
import SwiftUI

@main
struct DescribeApp: App {
    var body: some Scene {
        WindowGroup { ContentView() }
    }
}

@MainActor
final class Model: ObservableObject {
    @Published var answer = ""
    @Published var status = "Choose a picture"
    @Published var isBusy = false
    private var engine: Engine?
    private var task: Task<Void, Never>?

    /// Loads the model once: `model.gguf` and `mmproj.gguf` in the app's bundle.
    private func loaded() async throws -> Engine {
        if let engine { return engine }
        let path = { Bundle.main.path(forResource: $0, ofType: "gguf") }
        let loaded = try await Engine(model: path("model"), mmproj: path("mmproj"), progress: show)
        engine = loaded
        return loaded
    }

    private nonisolated func show(_ phase: Phase, _ done: Float) {
        Task { @MainActor in status = "\(phase): \(Int(done * 100)) %" }
    }

    func ask(_ question: String, about item: PhotosPickerItem) {
        let last = task
        task = Task {
            last?.cancel()
            await last?.value
            isBusy = true
            answer = ""
            defer { isBusy = false }
            do {
                guard let data = try await item.loadTransferable(type: Data.self) else {
                    status = "The picture cannot be read"
                    return
                }
                let session = try Session(try await loaded(), options: [("ctx-size", "4096")])
                try session.add(.user, try await Mmq.Image(decoding: [UInt8](data)))
                try session.add(.user, question)
                for try await piece in session.answer(progress: show) { answer += piece }
                status = ""
            } catch is CancellationError {
                status = "Stopped"
            } catch {
                status = "\(error)"
            }
        }
    }

    func stop() { task?.cancel() }

    func trim() { engine?.trim() }
}

struct ContentView: View {
    @StateObject private var model = Model()
    @State private var item: PhotosPickerItem?
    @State private var question = "What is in this picture?"

    var body: some View {
        VStack(alignment: .leading, spacing: 16) {
            PhotosPicker("Picture", selection: $item, matching: .images)
            TextField("Question", text: $question)
            Button(model.isBusy ? "Stop" : "Ask") {
                if model.isBusy { model.stop() } else if let item { model.ask(question, about: item) }
            }
            Text(model.status).foregroundStyle(.secondary)
            ScrollView { Text(model.answer).frame(maxWidth: .infinity, alignment: .leading) }
        }
        .padding()
        .onReceive(NotificationCenter.default.publisher(for: UIApplication.didReceiveMemoryWarningNotification)) { _ in
            model.trim()
        }
    }
}
