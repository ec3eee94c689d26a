/* How long calls go on after they were cancelled, at random points of each phase.
 *
 *     cancel MODEL MMPROJ|- PICTURE [TRIALS [THREADS [PHASE [SEED]]]]
 *
 * Prints for each phase (or those that PHASE begins the names of) its length when nobody stops it, and the median, 99th
 * percentile and maximum of the time from mmq_task_cancel to the call's return, in milliseconds. With a SEED each time goes to
 * standard error too, so that runs with several seeds can be put together.
 */
#include "mmq.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static mmq_status check(mmq_status status, mmq_error **error)
{
    if (status != MMQ_OK && status != MMQ_CANCELLED) {
        fprintf(stderr, "cancel: error %d: %s\n", (int)status, mmq_error_message(*error));
        exit(1);
    }
    if (status != MMQ_OK) {
        mmq_error_free(*error);
    }
    return status;
}

static const mmq_file *model, *mmproj;
static mmq_engine *engine;
static mmq_image *image;
static void *picture;
static size_t picture_size;
static char *long_text, *very_long_text;
static const char *threads = "0", *wanted = "";
static unsigned seed = 1;
static int tells_all = 0;

typedef mmq_status (*phase_fn)(const mmq_task *task);

static mmq_status load(const char *mode, const mmq_task *task)
{
    mmq_option options[2];
    mmq_engine *loaded;
    mmq_error *error = NULL;
    mmq_status status;
    options[0].key = "load-mode";
    options[0].value = mode;
    options[1].key = "threads";
    options[1].value = threads;
    status = check(mmq_engine_open(model, mmproj, options, 2, task, &loaded, &error), &error);
    mmq_engine_free(loaded);
    return status;
}

static mmq_status load_mmap(const mmq_task *task) { return load("mmap", task); }
static mmq_status load_repack(const mmq_task *task) { return load("repack", task); }

static mmq_status decode_picture(const mmq_task *task)
{
    mmq_image *decoded;
    mmq_error *error = NULL;
    mmq_status status = check(mmq_image_decode(picture, picture_size, task, &decoded, &error), &error);
    mmq_image_free(decoded);
    return status;
}

static mmq_status encode(const mmq_task *task)
{
    mmq_embedding *embedding;
    mmq_error *error = NULL;
    mmq_status status;
    mmq_engine_trim(engine); /* what was encoded before is forgotten */
    status = check(mmq_engine_encode(engine, image, task, &embedding, &error), &error);
    mmq_embedding_free(embedding);
    return status;
}

static mmq_status tokenize(const mmq_task *task)
{
    size_t n;
    mmq_error *error = NULL;
    return check(mmq_engine_tokenize(engine, very_long_text, task, NULL, 0, &n, &error), &error);
}

static mmq_session *session;

static mmq_session *new_session(const char *predict, const char *text)
{
    mmq_option options[] = {{"ctx-size", "4096"}, {"predict", NULL}, {"ignore-eos", "true"}};
    mmq_session *made;
    mmq_error *error = NULL;
    options[1].value = predict;
    check(mmq_session_new(engine, options, 3, &made, &error), &error);
    check(mmq_session_add_text(made, MMQ_RAW, text, &error), &error);
    return made;
}

static mmq_status prefill(const mmq_task *task)
{
    mmq_error *error = NULL;
    mmq_session *fresh = new_session("1", long_text);
    mmq_status status = check(mmq_session_prefill(fresh, task, &error), &error);
    mmq_session_free(fresh);
    return status;
}

static mmq_status answer(const mmq_task *task)
{
    mmq_error *error = NULL;
    mmq_status status = check(mmq_session_generate(session, task, NULL, NULL, NULL, &error), &error);
    check(mmq_session_truncate(session, 0, &error), &error);
    check(mmq_session_add_text(session, MMQ_RAW, "Once upon a time", &error), &error);
    return status;
}

typedef struct {
    mmq_task *task;
    double wait, cancelled;
} killer;

static void *kill_later(void *argument)
{
    killer *k = (killer *)argument;
    struct timespec wait;
    wait.tv_sec = (time_t)k->wait;
    wait.tv_nsec = (long)((k->wait - (double)wait.tv_sec) * 1e9);
    nanosleep(&wait, NULL);
    k->cancelled = now();
    mmq_task_cancel(k->task);
    return NULL;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure(const char *name, phase_fn phase, int n_trials)
{
    double *times = (double *)malloc(sizeof(double) * (size_t)n_trials), length;
    int n = 0, i;
    mmq_task *task;
    if (strncmp(name, wanted, strlen(wanted)) != 0) {
        free(times);
        return;
    }
    task = mmq_task_new(NULL, NULL, NULL);
    phase(task);
    length = now();
    phase(task);
    length = now() - length;
    mmq_task_free(task);
    for (i = 0; i < n_trials; i++) {
        killer k;
        pthread_t thread;
        double end;
        mmq_status status;
        k.task = mmq_task_new(NULL, NULL, NULL);
        k.wait = length * rand_r(&seed) / RAND_MAX;
        if (pthread_create(&thread, NULL, kill_later, &k) != 0) {
            exit(1);
        }
        status = phase(k.task);
        end = now();
        pthread_join(thread, NULL);
        mmq_task_free(k.task);
        if (status == MMQ_CANCELLED) {
            times[n++] = 1e3 * (end - k.cancelled);
            if (tells_all) {
                fprintf(stderr, "%s\t%.3f\t%.3f\n", name, 1e3 * k.wait, times[n - 1]);
            }
        }
    }
    qsort(times, (size_t)n, sizeof *times, by_size);
    if (n > 0) {
        printf("%-16s %9.1f ms long, cancelled %3d times: p50 %6.2f  p99 %6.2f  max %6.2f\n", name, 1e3 * length, n,
               times[n / 2], times[n * 99 / 100], times[n - 1]);
    }
    fflush(stdout);
    free(times);
}

static char *repeat(const char *text, size_t n)
{
    size_t length = strlen(text), i;
    char *all = (char *)malloc(length * n + 1);
    for (i = 0; i < n; i++) {
        memcpy(all + i * length, text, length);
    }
    all[length * n] = 0;
    return all;
}

static mmq_file *path(const char *name)
{
    mmq_file *file = NULL;
    mmq_error *error = NULL;
    if (strcmp(name, "-") != 0) {
        check(mmq_file_path(name, &file, &error), &error);
    }
    return file;
}

int main(int argc, char **argv)
{
    const int n = argc > 4 ? atoi(argv[4]) : 40;
    mmq_option options[1];
    mmq_error *error = NULL;
    int64_t has_vision;
    FILE *file;

    if (argc < 4 || n < 1) {
        fputs("usage: cancel MODEL MMPROJ|- PICTURE [TRIALS [THREADS [PHASE [SEED]]]]\n", stderr);
        return 2;
    }
    threads = argc > 5 ? argv[5] : threads;
    wanted = argc > 6 ? argv[6] : wanted;
    if (argc > 7) {
        seed = (unsigned)atoi(argv[7]);
        tells_all = 1;
    }
    options[0].key = "threads";
    options[0].value = threads;
    model = path(argv[1]);
    mmproj = path(argv[2]);
    file = fopen(argv[3], "rb");
    picture = malloc(64 << 20);
    picture_size = file == NULL ? 0 : fread(picture, 1, 64 << 20, file);
    check(mmq_image_decode(picture, picture_size, NULL, &image, &error), &error);
    long_text = repeat("The quick brown fox jumps over the lazy dog. ", 16);
    very_long_text = repeat("The quick brown fox jumps over the lazy dog. ", 20000);

    measure("load (mmap)", load_mmap, n);
    measure("load (repack)", load_repack, n);
    measure("picture decode", decode_picture, n);
    check(mmq_engine_open(model, mmproj, options, 1, NULL, &engine, &error), &error);
    check(mmq_engine_get(engine, "has_vision", &has_vision, &error), &error);
    if (has_vision) {
        measure("encode", encode, n);
    }
    measure("tokenize 900 kB", tokenize, n);
    measure("prefill", prefill, n);
    session = new_session("16", "Once upon a time");
    measure("answer", answer, n);
    return 0;
}
