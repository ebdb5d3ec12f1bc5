/* Stands in for AMD's librocm_smi64.so: the functions of symbols.txt, answering what the file named by FAKE_RSMI says. The
 * file is read again at each call, so that a test can take a GPU away while the probe runs. A line is
 *
 *     GPU FUNCTION VALUE...       such as `0 busy_percent 97` for rsmi_dev_busy_percent_get(0, ...)
 *     GPU FUNCTION.N VALUE...     N is the sensor, kind of memory, clock or block that is asked for
 *     GPU * VALUE...              every function of that GPU
 *     - init VALUE... | - gpus N | - version A B C | - driver TEXT
 *
 * and instead of a value `error N` is returned as N, `hang` never returns (then there is a file FAKE_RSMI.hangs), and
 * `abort` ends the process. With BEFORE_6 it lacks what ROCm 5.7 lacks. What no line answers is RSMI_STATUS_NOT_SUPPORTED. Types are written out here, so that the real
 * header need not be there; with REAL_HEADER its types are used, and its declarations must be those of this file. */
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef REAL_HEADER
#include <rocm_smi/rocm_smi.h>
typedef rsmi_status_t status;
typedef rsmi_gpu_block_t block_t;
typedef rsmi_memory_type_t memory_t;
typedef rsmi_clk_type_t clock_type;
typedef rsmi_temperature_metric_t metric_t;
typedef rsmi_sw_component_t component_t;
typedef rsmi_frequencies_t frequencies_t;
typedef rsmi_pcie_bandwidth_t bandwidth_t;
typedef rsmi_error_count_t errors_t;
typedef rsmi_ras_err_state_t state_t;
typedef rsmi_version_t version_t;
/* What rocm_smi_lib makes room for. */
_Static_assert(sizeof(frequencies_t) == 16 + 33 * 8, "clocks");
_Static_assert(sizeof(bandwidth_t) == sizeof(frequencies_t) + 136, "bandwidth");
_Static_assert(sizeof(errors_t) == 16 && sizeof(state_t) == 4 && sizeof(version_t) == 24, "counters");
enum { MAX_FREQUENCIES = RSMI_MAX_NUM_FREQUENCIES };
#else
typedef uint32_t status, memory_t, clock_type, metric_t, component_t, state_t;
typedef uint64_t block_t;
enum { MAX_FREQUENCIES = 33 };
typedef struct { bool has_deep_sleep; uint32_t num_supported, current; uint64_t frequency[MAX_FREQUENCIES]; } frequencies_t;
typedef struct { frequencies_t transfer_rate; uint32_t lanes[MAX_FREQUENCIES]; } bandwidth_t;
typedef struct { uint64_t correctable_err, uncorrectable_err; } errors_t;
typedef struct { uint32_t major, minor, patch; const char *build; } version_t;
#endif
#define SUCCESS 0
#define INVALID_ARGS 1
#define NOT_SUPPORTED 2
#define INSUFFICIENT_SIZE 11

static status answer(const char *gpu, const char *function, char *value, size_t size) {
    const char *path = getenv("FAKE_RSMI");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[512], wide[64];
    bool found = false;
    snprintf(wide, sizeof wide, "%s * ", gpu);
    char exact[128];
    snprintf(exact, sizeof exact, "%s %s ", gpu, function);
    value[0] = 0;
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        const char *prefix = strncmp(line, wide, strlen(wide)) == 0 ? wide : exact;
        if (strncmp(line, prefix, strlen(prefix)) != 0) continue;
        if (found && prefix == exact) continue;
        found = true;
        snprintf(value, size, "%s", line + strlen(prefix));
    }
    if (file) fclose(file);
    if (!found) return NOT_SUPPORTED;
    if (strcmp(value, "hang") == 0) {
        char mark[512];
        snprintf(mark, sizeof mark, "%s.hangs", path);
        fclose(fopen(mark, "w"));
        for (;;) pause();
    }
    if (strcmp(value, "abort") == 0) abort();
    if (strncmp(value, "error ", 6) == 0) return (status)strtoul(value + 6, NULL, 0);
    return SUCCESS;
}

static status of_gpu(uint32_t gpu, const char *function, char *value, size_t size) {
    char name[16];
    snprintf(name, sizeof name, "%" PRIu32, gpu);
    return answer(name, function, value, size);
}

static status of_part(uint32_t gpu, const char *function, uint64_t part, char *value, size_t size) {
    char name[96];
    snprintf(name, sizeof name, "%s.%" PRIu64, function, part);
    return of_gpu(gpu, name, value, size);
}

static status number(status s, const char *value, uint64_t *to) {
    if (s == SUCCESS) *to = strtoull(value, NULL, 0);
    return s;
}

#define NUMBER(name, type)                                                     \
    status rsmi_dev_##name##_get(uint32_t gpu, type *to) {                     \
        char value[512];                                                       \
        uint64_t n = 0;                                                        \
        if (!to) return INVALID_ARGS;                                          \
        status s = number(of_gpu(gpu, #name, value, sizeof value), value, &n); \
        if (s == SUCCESS) *to = (type)n;                                       \
        return s;                                                              \
    }
NUMBER(id, uint16_t)
NUMBER(vendor_id, uint16_t)
NUMBER(subsystem_id, uint16_t)
NUMBER(subsystem_vendor_id, uint16_t)
NUMBER(drm_render_minor, uint32_t)
NUMBER(unique_id, uint64_t)
NUMBER(pci_id, uint64_t)
NUMBER(busy_percent, uint32_t)
NUMBER(memory_busy_percent, uint32_t)
#ifndef BEFORE_6
NUMBER(revision, uint16_t)
NUMBER(xgmi_physical_id, uint16_t)
#endif

#define TEXT(name, length)                                             \
    status rsmi_dev_##name##_get(uint32_t gpu, char *to, length len) { \
        char value[512];                                               \
        status s = of_gpu(gpu, #name, value, sizeof value);            \
        if (s != SUCCESS) return s;                                    \
        snprintf(to, len, "%s", value);                                \
        return strlen(value) < len ? SUCCESS : INSUFFICIENT_SIZE;      \
    }
TEXT(name, size_t)
TEXT(brand, uint32_t)
TEXT(vendor_name, size_t)
TEXT(vram_vendor, uint32_t)
TEXT(serial_number, uint32_t)
TEXT(subsystem_name, size_t)

#define PART(name, type)                                                              \
    status rsmi_dev_##name##_get(uint32_t gpu, type part, uint64_t *to) {             \
        char value[512];                                                              \
        return number(of_part(gpu, #name, part, value, sizeof value), value, to);     \
    }
PART(memory_total, memory_t)
PART(memory_usage, memory_t)

status rsmi_dev_temp_metric_get(uint32_t gpu, uint32_t sensor, metric_t metric, int64_t *to) {
    char value[512];
    if (metric != 0) return NOT_SUPPORTED;
    status s = of_part(gpu, "temp_metric", sensor, value, sizeof value);
    if (s == SUCCESS) *to = strtoll(value, NULL, 0);
    return s;
}

/* The value is the number of the current one, then all of them. */
static status frequencies(status s, const char *value, frequencies_t *to) {
    char *rest;
    if (s != SUCCESS) return s;
    memset(to, 0, sizeof *to);
    to->current = (uint32_t)strtoul(value, &rest, 0);
    while (*rest && to->num_supported < MAX_FREQUENCIES) to->frequency[to->num_supported++] = strtoull(rest, &rest, 0);
    return SUCCESS;
}

status rsmi_dev_gpu_clk_freq_get(uint32_t gpu, clock_type clock, frequencies_t *to) {
    char value[512];
    status s = of_part(gpu, "gpu_clk_freq", clock, value, sizeof value);
    return frequencies(s, value, to);
}

status rsmi_dev_pci_bandwidth_get(uint32_t gpu, bandwidth_t *to) {
    char value[512];
    status s = of_gpu(gpu, "pci_bandwidth", value, sizeof value);
    return frequencies(s, value, &to->transfer_rate);
}

status rsmi_dev_pci_throughput_get(uint32_t gpu, uint64_t *sent, uint64_t *received, uint64_t *packet) {
    char value[512];
    status s = of_gpu(gpu, "pci_throughput", value, sizeof value);
    if (s == SUCCESS) *sent = *received = *packet = strtoull(value, NULL, 0);
    return s;
}

status rsmi_dev_ecc_count_get(uint32_t gpu, block_t block, errors_t *to) {
    char value[512], *rest;
    status s = of_part(gpu, "ecc_count", block, value, sizeof value);
    if (s != SUCCESS) return s;
    to->correctable_err = strtoull(value, &rest, 0);
    to->uncorrectable_err = strtoull(rest, NULL, 0);
    return SUCCESS;
}

status rsmi_dev_ecc_status_get(uint32_t gpu, block_t block, state_t *to) {
    char value[512];
    uint64_t n = 0;
    status s = number(of_part(gpu, "ecc_status", block, value, sizeof value), value, &n);
    if (s == SUCCESS) *to = (state_t)n;
    return s;
}

status rsmi_topo_numa_affinity_get(uint32_t gpu, int32_t *to) {
    char value[512];
    uint64_t n = 0;
    status s = number(of_gpu(gpu, "numa_affinity", value, sizeof value), value, &n);
    if (s == SUCCESS) *to = (int32_t)n;
    return s;
}

/* As in the real one, a failed start is told once, and then there are just no GPUs. */
static status started = NOT_SUPPORTED;

status rsmi_init(uint64_t flags) {
    char value[512];
    (void)flags;
    started = answer("-", "init", value, sizeof value);
    if (started == NOT_SUPPORTED) started = SUCCESS;
    return started;
}

status rsmi_num_monitor_devices(uint32_t *to) {
    char value[512];
    status s = answer("-", "gpus", value, sizeof value);
    *to = started == SUCCESS && s == SUCCESS ? (uint32_t)strtoul(value, NULL, 0) : 0;
    return s == NOT_SUPPORTED ? SUCCESS : s;
}

status rsmi_version_get(version_t *to) {
    char value[512], *rest;
    status s = answer("-", "version", value, sizeof value);
    if (s != SUCCESS) return s;
    to->major = (uint32_t)strtoul(value, &rest, 10);
    to->minor = (uint32_t)strtoul(rest, &rest, 10);
    to->patch = (uint32_t)strtoul(rest, NULL, 10);
    to->build = "";
    return SUCCESS;
}

status rsmi_version_str_get(component_t component, char *to, uint32_t len) {
    char value[512];
    status s = answer("-", "driver", value, sizeof value);
    (void)component;
    if (s == SUCCESS) snprintf(to, len, "%s", value);
    return s;
}
