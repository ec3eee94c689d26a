/* Thousands of short sessions on one engine, from several threads, each stopped at a random point: while a picture is decoded
 * or encoded, while the prompt is read, while the answer is made, or while the model is loaded again. Nothing may crash, fail
 * for another reason, or grow.
 *
 *     soak MODEL MMPROJ PICTURE [SESSIONS [THREADS]]
 */
#include "mmq.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what)
{
    fprintf(stderr, "soak: %s\n", what);
    exit(1);
}

/* A call may succeed or be stopped. */
static mmq_status check(mmq_status status, mmq_error **error)
{
    if (status != MMQ_OK && status != MMQ_CANCELLED) {
        fprintf(stderr, "soak: error %d: %s\n", (int)status, mmq_error_message(*error));
        exit(1);
    }
    if (status != MMQ_OK) {
        mmq_error_free(*error);
    }
    return status;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Resident memory in KiB; 0 where the system does not tell. */
static long resident(void)
{
    long pages = 0, n = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file != NULL) {
        if (fscanf(file, "%ld %ld", &n, &pages) != 2) {
            pages = 0;
        }
        fclose(file);
    }
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

/* A thread that cancels a task when its time has come. */
typedef struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    mmq_task *task; /* NULL: nothing to do */
    double when;
    int ends;
    pthread_t thread;
} bomb;

static void *wait_and_cancel(void *argument)
{
    bomb *b = (bomb *)argument;
    pthread_mutex_lock(&b->mutex);
    while (!b->ends) {
        if (b->task == NULL) {
            pthread_cond_wait(&b->changed, &b->mutex);
        } else if (now() >= b->when) {
            mmq_task_cancel(b->task);
            b->task = NULL;
        } else {
            struct timespec when;
            when.tv_sec = (time_t)b->when;
            when.tv_nsec = (long)((b->when - (double)when.tv_sec) * 1e9);
            pthread_cond_timedwait(&b->changed, &b->mutex, &when);
        }
    }
    pthread_mutex_unlock(&b->mutex);
    return NULL;
}

static void set(bomb *b, mmq_task *task, double seconds)
{
    pthread_mutex_lock(&b->mutex);
    b->task = task;
    b->when = now() + seconds;
    pthread_cond_signal(&b->changed);
    pthread_mutex_unlock(&b->mutex);
}

typedef struct {
    const mmq_file *model, *mmproj;
    const mmq_engine *engine;
    const void *picture;
    size_t picture_size;
    const mmq_embedding *embedding;
    int n_sessions, n_begun;
    unsigned seed;
    double longest[2]; /* seconds that a session, and loading, take when nobody stops them */
    int n_ended[6]; /* sessions that were stopped before and in each phase, and that were not */
    int64_t n_pieces;
} worker;

typedef struct {
    int32_t phase;
    int64_t n_pieces;
} where;

static void on_progress(void *user, int32_t phase, float done)
{
    where *w = (where *)user;
    if (done < 0 || done > 1 || phase < w->phase) {
        die("progress goes back");
    }
    w->phase = phase;
}

static int32_t on_text(void *user, const char *text, size_t size)
{
    where *w = (where *)user;
    w->phase = 4;
    w->n_pieces += text[size] == 0;
    return 0;
}

/* One session, or one loading of the model: returns how far it came. */
static int run(worker *w, int number, bomb *b)
{
    static const mmq_option options[] = {{"predict", "32"}, {"ctx-size", "512"}};
    static const mmq_option repack[] = {{"load-mode", "repack"}, {"threads", "1"}};
    where at = {0, 0};
    mmq_task *task = mmq_task_new(on_progress, NULL, &at);
    mmq_session *session = NULL;
    mmq_image *image = NULL;
    mmq_error *error = NULL;
    mmq_status status = MMQ_OK;

    if (b != NULL) {
        set(b, task, w->longest[number % 16 == 15] * rand_r(&w->seed) / RAND_MAX);
    }
    if (number % 16 == 15) {
        mmq_engine *engine;
        status = check(mmq_engine_open(w->model, w->mmproj, repack, 2, task, &engine, &error), &error);
        mmq_engine_free(engine);
    } else {
        check(mmq_session_new(w->engine, options, 2, &session, &error), &error);
        if (number % 4 == 0) {
            check(mmq_session_add_embedding(session, MMQ_USER, w->embedding, &error), &error);
        } else {
            status = check(mmq_image_decode(w->picture, w->picture_size, task, &image, &error), &error);
            if (status == MMQ_OK) {
                check(mmq_session_add_image(session, MMQ_USER, image, &error), &error);
            }
        }
        if (status == MMQ_OK) {
            check(mmq_session_add_text(session, MMQ_USER, "Describe the picture.", &error), &error);
            status = check(mmq_session_generate(session, task, on_text, &at, NULL, &error), &error);
        }
    }
    if (b != NULL) {
        set(b, NULL, 0);
    }
    mmq_image_free(image);
    mmq_session_free(session);
    mmq_task_free(task);
    w->n_pieces += at.n_pieces;
    return status == MMQ_OK ? 5 : at.phase;
}

static void *work(void *argument)
{
    worker *w = (worker *)argument;
    bomb b;
    int i;
    memset(&b, 0, sizeof b);
    pthread_mutex_init(&b.mutex, NULL);
    pthread_cond_init(&b.changed, NULL);
    if (pthread_create(&b.thread, NULL, wait_and_cancel, &b) != 0) {
        die("no thread");
    }
    for (i = 0; i < w->n_sessions; i++) {
        w->n_ended[run(w, w->n_begun++, &b)]++;
    }
    pthread_mutex_lock(&b.mutex);
    b.ends = 1;
    pthread_cond_signal(&b.changed);
    pthread_mutex_unlock(&b.mutex);
    pthread_join(b.thread, NULL);
    pthread_cond_destroy(&b.changed);
    pthread_mutex_destroy(&b.mutex);
    return NULL;
}

enum { MAX_THREADS = 16 };

/* Runs `n` sessions in all on `n_threads` threads. */
static void round_of(worker *workers, int n_threads, int n)
{
    pthread_t threads[MAX_THREADS];
    int i;
    for (i = 0; i < n_threads; i++) {
        workers[i].n_sessions = n * (i + 1) / n_threads - n * i / n_threads;
        if (pthread_create(&threads[i], NULL, work, &workers[i]) != 0) {
            die("no thread");
        }
    }
    for (i = 0; i < n_threads; i++) {
        pthread_join(threads[i], NULL);
    }
}

int main(int argc, char **argv)
{
    enum { ROUNDS = 10 };
    static const char *const ends[] = {"before anything", "while loading", "while encoding", "while reading", "while answering",
                                       "not at all"};
    static worker workers[MAX_THREADS];
    static char picture[1 << 20];
    const int n = argc > 4 ? atoi(argv[4]) : 1000, n_threads = argc > 5 ? atoi(argv[5]) : 2;
    mmq_error *error = NULL;
    mmq_file *model, *mmproj;
    mmq_engine *engine;
    mmq_image *image;
    mmq_embedding *embedding;
    size_t size;
    FILE *file;
    double start;
    int i, j, total[6] = {0};
    int64_t n_pieces = 0;
    long first = 0, last = 0;

    if (argc < 4 || n < ROUNDS || n_threads < 1 || n_threads > MAX_THREADS) {
        fputs("usage: soak MODEL MMPROJ PICTURE [SESSIONS [THREADS]]\n", stderr);
        return 2;
    }
    file = fopen(argv[3], "rb");
    size = file == NULL ? 0 : fread(picture, 1, sizeof picture, file);
    if (size == 0 || size == sizeof picture) {
        die("the picture cannot be read, or is too large");
    }
    fclose(file);
    check(mmq_file_path(argv[1], &model, &error), &error);
    check(mmq_file_path(argv[2], &mmproj, &error), &error);
    check(mmq_engine_open(model, mmproj, NULL, 0, NULL, &engine, &error), &error);
    check(mmq_image_decode(picture, size, NULL, &image, &error), &error);
    check(mmq_engine_encode(engine, image, NULL, &embedding, &error), &error);
    mmq_image_free(image);
    for (i = 0; i < n_threads; i++) {
        worker *w = &workers[i];
        w->model = model;
        w->mmproj = mmproj;
        w->engine = engine;
        w->picture = picture;
        w->picture_size = size;
        w->embedding = embedding;
        w->seed = 1 + (unsigned)i;
    }
    for (j = 0; j < 2; j++) {
        start = now();
        run(&workers[0], j == 0 ? 1 : 15, NULL);
        start = (now() - start) * 1.2;
        for (i = 0; i < n_threads; i++) {
            workers[i].longest[j] = start * n_threads;
        }
    }
    start = now();
    for (i = 0; i < ROUNDS; i++) {
        round_of(workers, n_threads, n * (i + 1) / ROUNDS - n * i / ROUNDS);
        last = resident();
        first = i == 0 ? last : first;
        printf("%d sessions: %ld KiB resident\n", n * (i + 1) / ROUNDS, last);
        fflush(stdout);
    }
    for (i = 0; i < n_threads; i++) {
        n_pieces += workers[i].n_pieces;
        for (j = 0; j < 6; j++) {
            total[j] += workers[i].n_ended[j];
        }
    }
    for (j = 0; j < 6; j++) {
        printf("stopped %s: %d\n", ends[j], total[j]);
    }
    printf("%ld pieces of text, %.1f s\n", (long)n_pieces, now() - start);
    mmq_embedding_free(embedding);
    mmq_engine_free(engine);
    mmq_file_free(mmproj);
    mmq_file_free(model);
    /* The first round has seen every kind of session and left its buffers behind. */
    if (last > first + 16 * 1024) {
        die("memory has grown");
    }
    return 0;
}
