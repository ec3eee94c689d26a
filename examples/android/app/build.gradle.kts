plugins {
    id("com.android.application")
    id("org.jetbrains.kotlin.android")
}

android {
    namespace = "dev.mmq.example"
    compileSdk = 35
    defaultConfig {
        applicationId = "dev.mmq.example"
        minSdk = 26
        targetSdk = 35
        ndk { abiFilters += "arm64-v8a" }
    }
    // The binding lies in the library's own sources.
    sourceSets["main"].java.srcDirs("src/main/kotlin", "../../../src/ffi/kotlin/mmq")
    // So that a model in the package can be mapped where it lies.
    androidResources { noCompress += "gguf" }
    kotlinOptions { jvmTarget = "17" }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
}

dependencies {
    implementation("net.java.dev.jna:jna:5.15.0@aar")
    implementation("org.jetbrains.kotlinx:kotlinx-coroutines-android:1.9.0")
    implementation("androidx.activity:activity-ktx:1.9.3")
}
