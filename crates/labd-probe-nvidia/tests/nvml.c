/* A stand-in for libnvidia-ml.so.1: the C symbols that `nvml-wrapper` resolves and the probe calls, with the behaviour that the
   file named in FAKE_NVML scripts. The file is read again at each call, so a test changes the world while the probe runs.

   One `KEY=VALUE` per line, the first one counts. A device is `0`, `1` and so on; a MIG device of it is `0.mig.0` and so on.

     driver=570.124.06   library=12.570.124.06   count=2
     0.uuid=GPU-...   0.name=...   0.pci=00000000:65:00.0   0.minor=0
     0.memory=85899345920   0.used=...      bytes
     0.mig=7                                MIG is on, with so many places; those without a uuid are empty
     0.temperature=41   0.utilisation=97   0.power=312500 (mW)   0.limit=...   0.clock.1=1980 (SM)   0.clock.2=2619 (memory)
     0.throttle=8 (bits)   0.ecc.0=3 (corrected)   0.ecc.1=0   0.field.142=1 (field values by id)
     0.compute=4242:1073741824,...   0.graphics=...      pid:bytes; without bytes they are not available

   `count` is read by nvmlInit_v2 alone: NVML knows the GPUs that were there then.
   A value without a line is NVML_ERROR_NOT_SUPPORTED. What happens in a call, before its value is looked for:

     nvmlInit_v2=18          this function returns 18
     0=15                    every function that is asked about device 0, or for it, returns 15
     0.nvmlDeviceGetName=hang   never returns; `abort` ends the process */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int Return;
enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };

#define DEVICES 16
#define PLACES 8

/* A handle points to the device's name in the script. */
typedef struct { char name[32]; } Device;

/* As in nvml.h. */
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char address[32]; } Pci;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory;
typedef struct { unsigned gpu, memory; } Utilisation;
typedef struct { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; } Process;
typedef struct {
    unsigned id, scope;
    long long timestamp, latency;
    unsigned type, result;
    union { unsigned long long ull; double d; } value;
} Field;

static int initialised;
static unsigned counted;

/* The value of KEY, in a buffer of the caller's; NULL without one. */
static char *value(const char *key, char *text, int size) {
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[4096], *found = NULL;
    size_t length = strlen(key);
    while (file && !found && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, key, length) && line[length] == '=') {
            snprintf(text, size, "%s", line + length + 1);
            found = text;
        }
    }
    if (file) fclose(file);
    return found;
}

static char *value_of(const Device *device, const char *key, char *text, int size) {
    char whole[128];
    snprintf(whole, sizeof whole, "%s.%s", device->name, key);
    return value(whole, text, size);
}

static Return number_of(const Device *device, const char *key, unsigned long long *number) {
    char text[64];
    if (!value_of(device, key, text, sizeof text)) return NOT_SUPPORTED;
    *number = strtoull(text, NULL, 0);
    return OK;
}

/* What the script lets happen under KEY. */
static Return happens(const char *key) {
    char text[64];
    if (!value(key, text, sizeof text)) return OK;
    if (!strcmp(text, "hang")) for (;;) pause();
    if (!strcmp(text, "abort")) abort();
    return atoi(text);
}

static Return call(const char *function, const Device *device) {
    char key[128];
    Return result = happens(function);
    if (result) return result;
    if (!initialised) return UNINITIALIZED;
    if (!device) return OK;
    if ((result = happens(device->name))) return result;
    snprintf(key, sizeof key, "%s.%s", device->name, function);
    return happens(key);
}

#define CALL(device) do { Return result = call(__func__, device); if (result) return result; } while (0)

static Return text_of(const Device *device, const char *key, char *out, unsigned size) {
    return value_of(device, key, out, size) ? OK : NOT_SUPPORTED;
}

static Return unsigned_of(const Device *device, const char *key, unsigned *out) {
    unsigned long long number;
    Return result = number_of(device, key, &number);
    if (!result) *out = number;
    return result;
}

Return nvmlInit_v2(void) {
    char text[16];
    Return result = happens(__func__);
    if (result) return result;
    counted = value("count", text, sizeof text) ? atoi(text) : 0;
    initialised = 1;
    return OK;
}

Return nvmlShutdown(void) {
    CALL(NULL);
    initialised = 0;
    return OK;
}

Return nvmlSystemGetDriverVersion(char *out, unsigned size) {
    CALL(NULL);
    return value("driver", out, size) ? OK : NOT_SUPPORTED;
}

Return nvmlSystemGetNVMLVersion(char *out, unsigned size) {
    CALL(NULL);
    return value("library", out, size) ? OK : NOT_SUPPORTED;
}

Return nvmlDeviceGetCount_v2(unsigned *count) {
    CALL(NULL);
    *count = counted;
    return OK;
}

Return nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **device) {
    static Device devices[DEVICES];
    if (index >= DEVICES) return INVALID_ARGUMENT;
    snprintf(devices[index].name, sizeof devices[index].name, "%u", index);
    CALL(&devices[index]);
    *device = &devices[index];
    return OK;
}

Return nvmlDeviceGetUUID(Device *device, char *out, unsigned size) {
    CALL(device);
    return text_of(device, "uuid", out, size);
}

Return nvmlDeviceGetName(Device *device, char *out, unsigned size) {
    CALL(device);
    return text_of(device, "name", out, size);
}

Return nvmlDeviceGetPciInfo_v3(Device *device, Pci *pci) {
    CALL(device);
    return text_of(device, "pci", pci->address, sizeof pci->address);
}

Return nvmlDeviceGetMinorNumber(Device *device, unsigned *minor) {
    CALL(device);
    return unsigned_of(device, "minor", minor);
}

Return nvmlDeviceGetMemoryInfo_v2(Device *device, Memory *memory) {
    CALL(device);
    if (memory->version != (sizeof *memory | 2 << 24)) return INVALID_ARGUMENT;
    if (number_of(device, "memory", &memory->total)) return NOT_SUPPORTED;
    if (number_of(device, "used", &memory->used)) memory->used = 0;
    memory->free = memory->total - memory->used;
    return OK;
}

Return nvmlDeviceGetMigMode(Device *device, unsigned *current, unsigned *pending) {
    unsigned places;
    CALL(device);
    *current = *pending = !unsigned_of(device, "mig", &places);
    return OK;
}

Return nvmlDeviceGetMaxMigDeviceCount(Device *device, unsigned *count) {
    CALL(device);
    return unsigned_of(device, "mig", count);
}

Return nvmlDeviceGetMigDeviceHandleByIndex(Device *device, unsigned index, Device **mig) {
    static Device devices[DEVICES][PLACES];
    char text[128];
    CALL(device);
    unsigned parent = atoi(device->name);
    if (parent >= DEVICES || index >= PLACES) return INVALID_ARGUMENT;
    Device *found = &devices[parent][index];
    snprintf(found->name, sizeof found->name, "%u.mig.%u", parent, index);
    if (!value_of(found, "uuid", text, sizeof text)) return NOT_FOUND;
    *mig = found;
    return OK;
}

Return nvmlDeviceGetUtilizationRates(Device *device, Utilisation *out) {
    CALL(device);
    return unsigned_of(device, "utilisation", &out->gpu);
}

Return nvmlDeviceGetTemperature(Device *device, unsigned sensor, unsigned *out) {
    (void)sensor;
    CALL(device);
    return unsigned_of(device, "temperature", out);
}

Return nvmlDeviceGetPowerUsage(Device *device, unsigned *out) {
    CALL(device);
    return unsigned_of(device, "power", out);
}

Return nvmlDeviceGetEnforcedPowerLimit(Device *device, unsigned *out) {
    CALL(device);
    return unsigned_of(device, "limit", out);
}

Return nvmlDeviceGetClockInfo(Device *device, unsigned type, unsigned *out) {
    char key[32];
    CALL(device);
    snprintf(key, sizeof key, "clock.%u", type);
    return unsigned_of(device, key, out);
}

Return nvmlDeviceGetCurrentClocksThrottleReasons(Device *device, unsigned long long *out) {
    CALL(device);
    return number_of(device, "throttle", out);
}

Return nvmlDeviceGetTotalEccErrors(Device *device, unsigned type, unsigned counter, unsigned long long *out) {
    char key[32];
    CALL(device);
    if (counter != 0) return INVALID_ARGUMENT; /* volatile ones are 0 */
    snprintf(key, sizeof key, "ecc.%u", type);
    return number_of(device, key, out);
}

Return nvmlDeviceGetFieldValues(Device *device, int count, Field *fields) {
    CALL(device);
    for (int i = 0; i < count; i++) {
        char key[32];
        snprintf(key, sizeof key, "field.%u", fields[i].id);
        fields[i].type = 3; /* unsigned long long */
        fields[i].result = number_of(device, key, &fields[i].value.ull);
    }
    return OK;
}

static Return processes(Device *device, const char *key, unsigned *count, Process *out) {
    char text[1024], *rest = text, *one;
    unsigned found = 0, room = *count;
    if (!value_of(device, key, text, sizeof text)) text[0] = 0;
    while ((one = strsep(&rest, ","))) {
        char *bytes;
        if (!*one) continue;
        if (out && found < room) {
            out[found] = (Process){ .pid = strtoul(one, &bytes, 10), .memory = -1ULL, .gpu_instance = -1U, .compute_instance = -1U };
            if (*bytes == ':') out[found].memory = strtoull(bytes + 1, NULL, 10);
        }
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : OK;
}

Return nvmlDeviceGetComputeRunningProcesses_v3(Device *device, unsigned *count, Process *out) {
    CALL(device);
    return processes(device, "compute", count, out);
}

Return nvmlDeviceGetGraphicsRunningProcesses_v3(Device *device, unsigned *count, Process *out) {
    CALL(device);
    return processes(device, "graphics", count, out);
}
