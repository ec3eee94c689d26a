/* A plugin for qemu's user mode that says how many instructions of AArch64 a program executed: with it, kernels are compared
 * without the processor that they are for. What is declared here are the parts of qemu's plugin interface, version 1, that
 * it uses.
 *
 *     cc -shared -fPIC -o count.so count.c
 *     qemu-aarch64 -plugin ./count.so -d plugin PROGRAM
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void (*translated)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*ended)(qemu_plugin_id_t, void *);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, translated);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *, uint64_t);
extern void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, ended, void *);
extern void qemu_plugin_outs(const char *);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

enum { ALL, VECTOR, MEMORY, KINDS };
static uint64_t instructions[KINDS];

/* By bits 25 to 28: x111 calculates with floats and vectors, x1x0 loads and stores. */
static int kind(uint32_t word) {
    uint32_t group = word >> 25 & 15;
    return (group & 7) == 7 ? VECTOR : (group & 5) == 4 ? MEMORY : ALL;
}

static void translate(qemu_plugin_id_t id, struct qemu_plugin_tb *block) {
    (void)id;
    enum { ADD_U64 = 0 };
    uint64_t counts[KINDS] = {0};
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i)), sizeof word);
        counts[kind(word)]++;
        if (kind(word) != ALL) counts[ALL]++;
    }
    for (int i = 0; i < KINDS; i++) qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &instructions[i], counts[i]);
}

static void end(qemu_plugin_id_t id, void *data) {
    (void)id, (void)data;
    char line[96];
    snprintf(line, sizeof line, "instructions: %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", instructions[ALL],
             instructions[VECTOR], instructions[MEMORY]);
    qemu_plugin_outs(line);
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv) {
    (void)info, (void)argc, (void)argv;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
    qemu_plugin_register_atexit_cb(id, end, NULL);
    return 0;
}
