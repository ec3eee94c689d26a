/* Describes a picture: the whole of mmq's C interface in one program.
 *
 *     describe MODEL MMPROJ PICTURE
 */
#include "mmq.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Ends the program with the library's own words. */
static void check(mmq_status status, mmq_error **error)
{
    if (status != MMQ_OK) {
        fprintf(stderr, "error %d: %s\n", (int)status, mmq_error_message(*error));
        mmq_error_free(*error);
        exit(1);
    }
}

static void on_progress(void *user, int32_t phase, float done)
{
    static const char *const names[] = {"", "loading", "encoding picture", "reading prompt"};
    (void)user;
    fprintf(stderr, "\r%s: %3.0f %%%s", names[phase], 100.0 * done, done < 1 ? "" : "\n");
}

static void on_log(void *user, int32_t level, const char *message)
{
    (void)user;
    fprintf(stderr, "%s%s\n", level == MMQ_WARNING ? "warning: " : "", message);
}

static int32_t on_text(void *user, const char *text, size_t size)
{
    (void)user;
    fwrite(text, 1, size, stdout);
    return fflush(stdout); /* not 0 if nobody reads any more: then the answer ends */
}

/* Reads a whole file. */
static void *read_file(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    char *data;
    long end;
    if (file == NULL || fseek(file, 0, SEEK_END) != 0 || (end = ftell(file)) < 0) {
        perror(path);
        exit(1);
    }
    rewind(file);
    data = (char *)malloc((size_t)end + 1);
    *size = data == NULL ? 0 : fread(data, 1, (size_t)end, file);
    fclose(file);
    return data;
}

/* Asks about a picture and prints the answer. */
static void ask(const mmq_engine *engine, const mmq_image *image, const char *question, const mmq_task *task)
{
    static const mmq_option options[] = {{"temp", "0"}, {"predict", "64"}};
    mmq_session *session;
    mmq_error *error = NULL;
    size_t n_tokens;
    int64_t n_read;
    int32_t finish;

    check(mmq_session_new(engine, options, 2, &session, &error), &error);
    check(mmq_session_add_image(session, MMQ_USER, image, &error), &error);
    check(mmq_session_add_text(session, MMQ_USER, question, &error), &error);
    /* Known before anything is encoded or read. */
    check(mmq_session_count_tokens(session, task, &n_tokens, &error), &error);
    check(mmq_session_generate(session, task, on_text, NULL, &finish, &error), &error);
    check(mmq_session_get(session, "n_read", &n_read, &error), &error);
    printf("\n  (%lu tokens counted, %ld read, %s)\n", (unsigned long)n_tokens, (long)n_read,
           finish == MMQ_END_OF_TURN ? "ended by the model" : "cut short");
    mmq_session_free(session);
}

/* A picture that the program itself draws: rows of RGB with some bytes between them, as cameras and textures have. */
static mmq_image *draw(void)
{
    enum { SIDE = 96, STRIDE = 3 * SIDE + 5 };
    static unsigned char pixels[SIDE * STRIDE];
    mmq_image *image;
    mmq_error *error = NULL;
    int x, y;
    memset(pixels, 255, sizeof pixels);
    for (y = 34; y < 62; y++) {
        for (x = 34; x < 62; x++) {
            unsigned char *pixel = pixels + y * STRIDE + 3 * x;
            pixel[0] = 30;
            pixel[1] = 60;
            pixel[2] = 220;
        }
    }
    check(mmq_image_raw(pixels, SIDE, SIDE, STRIDE, MMQ_RGB, &image, &error), &error);
    return image;
}

static void print_embedding(const mmq_engine *engine, const mmq_image *image, const mmq_task *task)
{
    mmq_embedding *embedding;
    mmq_error *error = NULL;
    size_t n_tokens, n_embd, i;
    const float *rows;
    double sum = 0;
    check(mmq_engine_encode(engine, image, task, &embedding, &error), &error);
    rows = mmq_embedding_data(embedding, &n_tokens, &n_embd);
    for (i = 0; i < n_tokens * n_embd; i++) {
        sum += (double)rows[i] * rows[i];
    }
    printf("embedding: %lu x %lu, mean square %.4f\n", (unsigned long)n_tokens, (unsigned long)n_embd,
           sum / (double)(n_tokens * n_embd));
    mmq_embedding_free(embedding);
}

/* What another thread does while an answer is made: it stops it. */
static void *stop_soon(void *task)
{
    struct timespec wait = {0, 30 * 1000 * 1000};
    nanosleep(&wait, NULL);
    mmq_task_cancel((const mmq_task *)task);
    return NULL;
}

static void be_stopped(const mmq_engine *engine)
{
    static const mmq_option options[] = {{"ignore-eos", "true"}, {"ctx-size", "100000"}};
    mmq_task *task = mmq_task_new(NULL, NULL, NULL);
    mmq_session *session;
    mmq_error *error = NULL;
    mmq_status status;
    pthread_t thread;

    check(mmq_session_new(engine, options, 2, &session, &error), &error);
    check(mmq_session_add_text(session, MMQ_RAW, "a red star and", &error), &error);
    if (pthread_create(&thread, NULL, stop_soon, task) != 0) {
        fputs("no second thread\n", stderr);
        exit(1);
    }
    status = mmq_session_generate(session, task, NULL, NULL, NULL, &error);
    pthread_join(thread, NULL);
    printf("an answer without end: %s\n", status == MMQ_CANCELLED ? "cancelled" : "not cancelled");
    mmq_error_free(error);
    mmq_session_free(session);
    mmq_task_free(task);
}

int main(int argc, char **argv)
{
    mmq_error *error = NULL;
    mmq_file *model, *mmproj;
    mmq_engine *engine;
    mmq_image *image, *drawn;
    mmq_task *task;
    size_t size, n_tokens;
    void *data;

    if (argc != 4) {
        fputs("usage: describe MODEL MMPROJ PICTURE\n", stderr);
        return 2;
    }
    if (mmq_abi_version() != MMQ_ABI_VERSION) {
        fprintf(stderr, "this program was compiled for another version of mmq than %s\n", mmq_version());
        return 1;
    }
    task = mmq_task_new(on_progress, on_log, NULL);
    check(mmq_file_path(argv[1], &model, &error), &error);
    check(mmq_file_path(argv[2], &mmproj, &error), &error);
    check(mmq_engine_open(model, mmproj, NULL, 0, task, &engine, &error), &error);
    mmq_file_free(model);
    mmq_file_free(mmproj);
    printf("%s\n", mmq_engine_describe(engine));

    data = read_file(argv[3], &size);
    check(mmq_image_decode(data, size, task, &image, &error), &error);
    free(data);
    check(mmq_engine_count_image_tokens(engine, 640, 480, &n_tokens, &error), &error);
    printf("a picture of 640 x 480 takes %lu tokens\n", (unsigned long)n_tokens);

    ask(engine, image, "Describe the picture.", task);
    drawn = draw();
    ask(engine, drawn, "Describe the picture.", task);
    print_embedding(engine, image, task);
    be_stopped(engine);

    /* An error says what is wrong, and with what. */
    if (mmq_file_path("no such file.gguf", &model, &error) == MMQ_OK) {
        mmq_engine *none;
        if (mmq_engine_open(model, NULL, NULL, 0, NULL, &none, &error) != MMQ_OK) {
            printf("status %d: %s\n", (int)mmq_error_status(error), mmq_error_message(error));
            mmq_error_free(error);
        }
        mmq_file_free(model);
    }

    mmq_image_free(drawn);
    mmq_image_free(image);
    mmq_engine_free(engine);
    mmq_task_free(task);
    return 0;
}
