/* How long the first piece of an answer takes when the picture is new, and when it was looked at before.
 *
 *     again MODEL MMPROJ PICTURE FOLDER [ROUNDS]
 *
 * FOLDER is where encoded pictures are kept; it is to be empty. Prints medians in milliseconds: of a new engine that has never
 * seen the picture, of the same question in another session of that engine, of a second question in the same session, and of
 * a new engine that finds the picture in FOLDER. Pictures are decoded before.
 */
#include "mmq.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

static void check(mmq_status status, mmq_error **error)
{
    if (status != MMQ_OK) {
        fprintf(stderr, "again: error %d: %s\n", (int)status, mmq_error_message(*error));
        exit(1);
    }
}

static double first;

static int32_t on_text(void *user, const char *text, size_t size)
{
    (void)user;
    (void)text;
    (void)size;
    first = first == 0 ? now() : first;
    return 0;
}

/* The time to the first piece of the answer to `question`. */
static double ask(mmq_session *session, const char *question)
{
    mmq_error *error = NULL;
    double start = now();
    first = 0;
    check(mmq_session_add_text(session, MMQ_USER, question, &error), &error);
    check(mmq_session_generate(session, NULL, on_text, NULL, NULL, &error), &error);
    return first - start;
}

static mmq_session *looking(const mmq_engine *engine, const mmq_image *image)
{
    static const mmq_option options[] = {{"ctx-size", "2048"}, {"predict", "8"}, {"temp", "0"}, {"ignore-eos", "true"}};
    mmq_session *session;
    mmq_error *error = NULL;
    check(mmq_session_new(engine, options, 4, &session, &error), &error);
    check(mmq_session_add_image(session, MMQ_USER, image, &error), &error);
    return session;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    enum { CASES = 4, MOST = 99 };
    static const char *const names[CASES] = {"cold", "memory hit", "same session", "disk hit"};
    static double times[CASES][MOST];
    const int n = argc > 5 ? atoi(argv[5]) : 5;
    mmq_option cache[2] = {{"image-cache", NULL}, {"load-mode", "mmap"}};
    mmq_file *model, *mmproj;
    mmq_image *image;
    mmq_error *error = NULL;
    char command[4096];
    void *data;
    size_t size;
    FILE *file;
    int i, j;

    if (argc < 5 || n < 1 || n > MOST) {
        fputs("usage: again MODEL MMPROJ PICTURE FOLDER [ROUNDS]\n", stderr);
        return 2;
    }
    cache[0].value = argv[4];
    check(mmq_file_path(argv[1], &model, &error), &error);
    check(mmq_file_path(argv[2], &mmproj, &error), &error);
    file = fopen(argv[3], "rb");
    data = malloc(64 << 20);
    size = file == NULL ? 0 : fread(data, 1, 64 << 20, file);
    check(mmq_image_decode(data, size, NULL, &image, &error), &error);
    for (i = 0; i < n; i++) {
        mmq_engine *engine;
        mmq_session *session, *other;
        sprintf(command, "rm -f '%.4000s'/*.mmq-image", argv[4]);
        if (system(command) != 0) {
            return 1;
        }
        check(mmq_engine_open(model, mmproj, cache, 2, NULL, &engine, &error), &error);
        session = looking(engine, image);
        times[0][i] = ask(session, "What is this?");
        other = looking(engine, image);
        times[1][i] = ask(other, "Which colours does it have?");
        times[2][i] = ask(session, "Which colours does it have?");
        mmq_session_free(other);
        mmq_session_free(session);
        mmq_engine_free(engine);
        check(mmq_engine_open(model, mmproj, cache, 2, NULL, &engine, &error), &error);
        session = looking(engine, image);
        times[3][i] = ask(session, "Which colours does it have?");
        mmq_session_free(session);
        mmq_engine_free(engine);
    }
    for (j = 0; j < CASES; j++) {
        qsort(times[j], (size_t)n, sizeof(double), by_size);
        printf("%-13s %8.1f ms (%.1f to %.1f)\n", names[j], times[j][n / 2], times[j][0], times[j][n - 1]);
    }
    return 0;
}
