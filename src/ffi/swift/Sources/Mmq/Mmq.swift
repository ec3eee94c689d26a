/// mmq for Swift: `mmq.h` with tasks, streams and errors. Objects are freed when nothing refers to them any more.
import CMmq
import Dispatch
import Foundation

/// What went wrong: `status` is one of `mmq.h`, `message` is for people.
public struct MmqError: Error, CustomStringConvertible {
    public let status: Int32
    public let message: String
    public var description: String { message }
}

public enum Phase: Int32, Sendable { case load = 1, encode, prefill, save, restore }
public enum Role: Int32, Sendable { case raw = 0, system, user, assistant }
public enum PixelFormat: Int32, Sendable { case rgb = 1, rgba, bgra }

/// Told how far a phase is, from 0 to 1, on a thread of the library's choice.
public typealias Progress = @Sendable (Phase, Float) -> Void

/// How much memory a run takes, and what makes it fit a budget.
public struct Plan: Sendable {
    /// All of it, as a JSON object.
    public let json: String
    /// What is chosen: options for `Engine` and `Session`.
    public let engine: [String: String]
    public let session: [(String, String)]

    /// Reads the head of the files alone. For the options see `mmq_plan_new`: `["budget": "1.5G"]`.
    public init(model: String?, mmproj: String? = nil, options: [String: String] = [:]) throws {
        let plan = try withFiles(model, mmproj) { model, mmproj in
            try withOptions(options.map { ($0.key, $0.value) }) { options, n in
                try made { mmq_plan_new(model, mmproj, options, n, $0, $1) }
            }
        }
        defer { mmq_plan_free(plan) }
        func chosen(_ options: (OpaquePointer?, UnsafeMutablePointer<Int>?) -> UnsafePointer<mmq_option>?) -> [(String, String)] {
            var n = 0
            let options = options(plan, &n)
            return UnsafeBufferPointer(start: options, count: n).map { (String(cString: $0.key), String(cString: $0.value)) }
        }
        json = String(cString: mmq_plan_json(plan))
        engine = Dictionary(uniqueKeysWithValues: chosen(mmq_plan_engine_options))
        session = chosen(mmq_plan_session_options)
    }
}

/// A loaded model, shared by any number of sessions and threads.
public final class Engine: @unchecked Sendable {
    fileprivate let pointer: OpaquePointer

    /// Loads a model from its path; `nil` is the one that is compiled into the library. For the options see `mmq.h`.
    public init(
        model: String?, mmproj: String? = nil, options: [String: String] = [:], progress: Progress? = nil
    ) async throws {
        pointer = try await Call(progress).run { call in
            try withFiles(model, mmproj) { model, mmproj in
                try withOptions(options.map { ($0.key, $0.value) }) { options, n in
                    try made { mmq_engine_open(model, mmproj, options, n, call.task, $0, $1) }
                }
            }
        }
    }

    deinit { mmq_engine_free(pointer) }

    /// What it is, in a few words.
    public var description: String { String(cString: mmq_engine_describe(pointer)) }

    /// `n_ctx_train`, `has_vision` and so on: see `mmq_engine_get`.
    public func value(_ key: String) throws -> Int64 {
        var value: Int64 = 0
        try check { mmq_engine_get(pointer, key, &value, $0) }
        return value
    }

    /// Tokens that a picture of this size takes: known without encoding it.
    public func countImageTokens(width: Int, height: Int) throws -> Int {
        var n = 0
        try check { mmq_engine_count_image_tokens(pointer, width, height, &n, $0) }
        return n
    }

    /// A row of floats for each token of a picture.
    public func encode(_ image: Image, progress: Progress? = nil) async throws -> [[Float]] {
        try await Call(progress).run { [self] call in
            let embedding = try made { mmq_engine_encode(pointer, image.pointer, call.task, $0, $1) }
            defer { mmq_embedding_free(embedding) }
            var rows = 0, width = 0
            guard let data = mmq_embedding_data(embedding, &rows, &width) else { return [] }
            return (0..<rows).map { Array(UnsafeBufferPointer(start: data + $0 * width, count: width)) }
        }
    }

    /// Frees memory that can be had again: for `didReceiveMemoryWarning`.
    public func trim() { mmq_engine_trim(pointer) }
}

/// A picture.
public final class Image: @unchecked Sendable {
    fileprivate let pointer: OpaquePointer

    /// Decodes a JPEG, PNG, WebP, GIF or BMP.
    public init(decoding file: [UInt8]) async throws {
        pointer = try await Call(nil).run { call in
            try made { mmq_image_decode(file, file.count, call.task, $0, $1) }
        }
    }

    /// Copies pixels; rows lie `stride` bytes apart (0: without a gap).
    public init(pixels: [UInt8], width: Int, height: Int, stride: Int = 0, format: PixelFormat) throws {
        let bytes = format == .rgb ? 3 : 4
        let row = stride == 0 ? width * bytes : stride
        guard width > 0, height > 0, pixels.count >= row * (height - 1) + width * bytes else {
            throw MmqError(status: 1, message: "\(pixels.count) bytes for \(width) x \(height) pixels")
        }
        pointer = try made { mmq_image_raw(pixels, width, height, stride, format.rawValue, $0, $1) }
    }

    deinit { mmq_image_free(pointer) }
}

/// A conversation, for one caller at a time.
public final class Session: @unchecked Sendable {
    fileprivate let pointer: OpaquePointer

    /// A conversation on an engine. An option that may repeat stands in the list several times.
    public init(_ engine: Engine, options: [(String, String)] = []) throws {
        pointer = try withOptions(options) { options, n in
            try made { mmq_session_new(engine.pointer, options, n, $0, $1) }
        }
    }

    deinit { mmq_session_free(pointer) }

    /// Appends to the conversation.
    public func add(_ role: Role, _ text: String) throws {
        try check { mmq_session_add_text(pointer, role.rawValue, text, $0) }
    }

    /// Appends a picture. It is encoded when the prompt is read.
    public func add(_ role: Role, _ image: Image) throws {
        try check { mmq_session_add_image(pointer, role.rawValue, image.pointer, $0) }
    }

    /// Tokens that the conversation takes before the answer.
    public func countTokens() async throws -> Int {
        try await Call(nil).run { [self] call in
            var n = 0
            try check { mmq_session_count_tokens(pointer, call.task, &n, $0) }
            return n
        }
    }

    /// Reads the prompt ahead of `answer`, to save time.
    public func prefill(progress: Progress? = nil) async throws {
        try await Call(progress).run { [self] call in
            try check { mmq_session_prefill(pointer, call.task, $0) }
        }
    }

    /// The answer, piece by piece. Cancelling the task that reads it stops the model as soon as `mmq.h` says.
    public func answer(progress: Progress? = nil) -> AsyncThrowingStream<String, Error> {
        AsyncThrowingStream { continuation in
            let call = Call(progress)
            call.onText = { continuation.yield($0) }
            continuation.onTermination = { _ in call.cancel() }
            DispatchQueue.global().async { [self] in
                do {
                    try check {
                        mmq_session_generate(pointer, call.task, { user, text, size in
                            let call = Unmanaged<Call>.fromOpaque(user!).takeUnretainedValue()
                            let bytes = UnsafeRawBufferPointer(start: text, count: size)
                            call.onText(String(decoding: bytes, as: UTF8.self))
                            return 0
                        }, Unmanaged.passUnretained(call).toOpaque(), nil, $0)
                    }
                    continuation.finish()
                } catch let error as MmqError where error.status == 8 {
                    continuation.finish(throwing: CancellationError())
                } catch {
                    continuation.finish(throwing: error)
                }
            }
        }
    }

    /// Forgets all but the first `n` messages.
    public func truncate(to n: Int) throws {
        try check { mmq_session_truncate(pointer, n, $0) }
    }

    /// Keeps what the session has read in a file, pictures included.
    public func save(to path: String, progress: Progress? = nil) async throws {
        try await Call(progress).run { [self] call in
            try check { mmq_session_save(pointer, path, call.task, $0) }
        }
    }

    /// Takes up what `save` has kept, with the same model.
    public func restore(from path: String, progress: Progress? = nil) async throws {
        try await Call(progress).run { [self] call in
            try check { mmq_session_restore(pointer, path, call.task, $0) }
        }
    }

    /// `n_past`, `n_ctx`, `n_read` and so on: see `mmq_session_get`.
    public func value(_ key: String) throws -> Int64 {
        var value: Int64 = 0
        try check { mmq_session_get(pointer, key, &value, $0) }
        return value
    }
}

/// A call that takes long: its task, and who is told.
private final class Call: @unchecked Sendable {
    private(set) var task: OpaquePointer!
    private let progress: Progress?
    var onText: (String) -> Void = { _ in }

    init(_ progress: Progress?) {
        self.progress = progress
        task = mmq_task_new({ user, phase, done in
            let call = Unmanaged<Call>.fromOpaque(user!).takeUnretainedValue()
            if let phase = Phase(rawValue: phase) { call.progress?(phase, done) }
        }, nil, Unmanaged.passUnretained(self).toOpaque())
    }

    deinit { mmq_task_free(task) }

    func cancel() { mmq_task_cancel(task) }

    /// Runs `body` on a thread that may block; the task is cancelled with Swift's.
    func run<T>(_ body: @escaping @Sendable (Call) throws -> T) async throws -> T {
        try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { continuation in
                DispatchQueue.global().async {
                    do {
                        continuation.resume(returning: try body(self))
                    } catch let error as MmqError where error.status == 8 {
                        continuation.resume(throwing: CancellationError())
                    } catch {
                        continuation.resume(throwing: error)
                    }
                }
            }
        } onCancel: {
            cancel()
        }
    }
}

/// Throws what a call fails with.
private func check(_ call: (UnsafeMutablePointer<OpaquePointer?>) -> mmq_status) throws {
    var error: OpaquePointer?
    let status = call(&error)
    if status != 0 {
        defer { mmq_error_free(error) }
        throw MmqError(status: status, message: String(cString: mmq_error_message(error)))
    }
}

private func made(
    _ call: (UnsafeMutablePointer<OpaquePointer?>, UnsafeMutablePointer<OpaquePointer?>) -> mmq_status
) throws -> OpaquePointer {
    var object: OpaquePointer?
    try check { call(&object, $0) }
    return object!
}

/// Files as C has them, for the time of a call.
private func withFiles<T>(
    _ model: String?, _ mmproj: String?, _ body: (OpaquePointer?, OpaquePointer?) throws -> T
) throws -> T {
    func file(_ path: String) throws -> OpaquePointer { try made { mmq_file_path(path, $0, $1) } }
    let model = try model.map(file)
    defer { mmq_file_free(model) }
    let mmproj = try mmproj.map(file)
    defer { mmq_file_free(mmproj) }
    return try body(model, mmproj)
}

/// Options as C has them, for the time of a call.
private func withOptions<T>(
    _ pairs: [(String, String)], _ body: (UnsafePointer<mmq_option>?, Int) throws -> T
) rethrows -> T {
    let texts = pairs.map { (strdup($0.0), strdup($0.1)) }
    defer {
        texts.forEach {
            free($0.0)
            free($0.1)
        }
    }
    let options = texts.map { mmq_option(key: $0.0, value: $0.1) }
    return try options.withUnsafeBufferPointer { try body($0.baseAddress, $0.count) }
}
