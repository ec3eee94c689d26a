// swift-tools-version:5.9
// mmq for Swift. The linker must find libmmq: `src/ffi/build.sh` makes it, `-Xlinker -L…` or an XCFramework names its place.
import PackageDescription

let package = Package(
    name: "Mmq",
    platforms: [.iOS(.v15), .macOS(.v12)],
    products: [.library(name: "Mmq", targets: ["Mmq"])],
    targets: [
        .systemLibrary(name: "CMmq"),
        .target(name: "Mmq", dependencies: ["CMmq"]),
    ]
)
