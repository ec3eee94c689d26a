/// What check.sh runs: the package against the built-in model's files. Stops if anything is not as it should be.
import Foundation

func expect(_ holds: Bool, _ what: @autoclosure () -> String) {
    if !holds { fatalError(what()) }
}

/// What callbacks on other threads have seen.
final class Seen: @unchecked Sendable {
    private let lock = NSLock()
    private var phases: [Phase] = []
    func add(_ phase: Phase) { lock.withLock { phases.append(phase) } }
    var all: [Phase] { lock.withLock { phases } }
}

@main
struct Check {
    static let files = ("models/nano/nano.gguf", "models/nano/mmproj-nano.gguf")

    static func main() async throws {
        let seen = Seen()
        let engine = try await Engine(model: files.0, mmproj: files.1, options: ["threads": "2"]) { phase, done in
            if done == 1 { seen.add(phase) }
        }
        print(engine.description)
        expect(seen.all == [.load], "\(seen.all)")
        let picture = try [UInt8](Data(contentsOf: URL(fileURLWithPath: "models/nano/sample.png")))
        let image = try await Image(decoding: picture)

        let session = try Session(engine, options: [("temp", "0"), ("predict", "64")])
        try session.add(.user, image)
        try session.add(.user, "Describe the picture.")
        let counted = try await session.countTokens()
        var pieces: [String] = []
        for try await piece in session.answer() { pieces.append(piece) }
        print(pieces.joined(separator: "|"))
        expect(pieces.count > 5 && pieces.joined().hasPrefix("a red star at the top left"), "\(pieces)")
        try expect(session.value("n_read") == Int64(counted) && session.value("n_messages") == 2, "\(counted)")
        let rows = try await engine.encode(image)
        try expect(rows.count == engine.countImageTokens(width: 96, height: 96), "\(rows.count)")
        try expect(Int64(rows[0].count) == engine.value("n_embd"), "\(rows[0].count)")

        try await plans(engine, image)
        try await stops(engine)
        do {
            _ = try Session(engine, options: [("temp", "warm")])
            fatalError("not refused")
        } catch let error as MmqError {
            print("\(error.status): \(error)")
            expect(error.status == 1 && error.message.contains("warm"), "\(error)")
        }
        _ = try Image(pixels: [UInt8](repeating: 0, count: 3 * 32 * 32), width: 32, height: 32, format: .rgb)
    }

    /// What a plan chooses; what was read is kept in a file.
    static func plans(_ engine: Engine, _ image: Image) async throws {
        let plan = try Plan(model: files.0, mmproj: files.1, options: ["ctx-size": "512", "image-size": "96x96"])
        expect(plan.json.contains("\"peak\"") && plan.engine["load-mode"] == "mmap", plan.json)
        expect(plan.session.contains { $0 == ("ctx-size", "512") }, "\(plan.session)")
        let planned = try await Engine(model: files.0, mmproj: files.1, options: plan.engine)
        let kept = NSTemporaryDirectory() + "/mmq-check.session"
        let first = try Session(planned, options: plan.session)
        try first.add(.user, image)
        try first.add(.user, "Describe the picture.")
        try await first.prefill()
        try await first.save(to: kept)
        let second = try Session(engine, options: plan.session)
        try await second.restore(from: kept)
        try expect(second.value("n_past") == first.value("n_past") && first.value("n_past") > 0, "not restored")
        try FileManager.default.removeItem(atPath: kept)
    }

    /// A reader that goes away stops the model; the session answers again.
    static func stops(_ engine: Engine) async throws {
        let session = try Session(engine, options: [("temp", "0"), ("ignore-eos", "true"), ("ctx-size", "100000")])
        try session.add(.raw, "a red star and")
        let reading = Task {
            var n = 0
            for try await _ in session.answer() {
                n += 1
                if n == 3 { break }
            }
            return n
        }
        let n = try await reading.value
        expect(n == 3, "\(n) pieces")
        while true {
            do {
                try expect(session.value("n_past") > 0, "nothing was read")
                break
            } catch let error as MmqError where error.status == 10 {
                try await Task.sleep(nanoseconds: 1_000_000)
            }
        }
        print("cancelled")
    }
}
