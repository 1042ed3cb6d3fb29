/*
 * A libnvidia-ml.so.1 without NVIDIA, for the testbed only.
 *
 * It reads a table of GPUs that testbed/machine/gpus appended to this very
 * file: the real library asks the driver and needs no other file either, so
 * this one works wherever it is bound. As the real one does, it shows a process
 * only those GPUs whose device node that process can open. No driver stands
 * behind the nodes, so an allowed one opens with ENXIO and one that the device
 * cgroup denies fails with EPERM: the isolation is the kernel's own, only names
 * and figures are invented.
 *
 * The table, one thing a line, GPUs in the order of their NVML index:
 *   driver VERSION
 *   gpu MINOR UUID PCI-ADDRESS MEMORY-MIB NAME...
 *   mig GPU-MINOR UUID GPU-INSTANCE COMPUTE-INSTANCE GI-CAP CI-CAP MEMORY-MIB
 * NAME... GI-CAP and CI-CAP are minors of /dev/nvidia-caps/nvidia-capN; a MIG
 * device is shown when both open.
 */
#define _GNU_SOURCE
#include "fakenvml.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* testbed/machine/gpus writes this line between the library and the table. */
#define TABLE_MARK "\n#fakenvml table\n"
#define MAX_DEVICES 64

struct fake_device {
	int is_mig;
	unsigned int minor; /* a MIG device: the minor of its GPU */
	unsigned int index; /* among the visible ones */
	unsigned int gi, ci;
	unsigned long long memory;
	char uuid[96], pci[32], name[96];
	struct fake_device *parent;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct fake_device devices[MAX_DEVICES];
static unsigned int device_count, gpu_count, users;
static char driver[64] = "550.0";

static int node_opens(const char *path, int how)
{
	int fd = open(path, how | O_CLOEXEC);

	if (fd >= 0) {
		close(fd);
		return 1;
	}
	return errno == ENXIO;
}

static int cap_opens(unsigned int minor)
{
	char path[64];

	snprintf(path, sizeof(path), "/dev/nvidia-caps/nvidia-cap%u", minor);
	return node_opens(path, O_RDONLY);
}

static struct fake_device *gpu_by_minor(unsigned int minor)
{
	for (unsigned int i = 0; i < device_count; i++)
		if (!devices[i].is_mig && devices[i].minor == minor)
			return &devices[i];
	return NULL;
}

static void add_gpu(const char *line)
{
	struct fake_device d = {0};
	char path[64];

	if (sscanf(line, "gpu %u %95s %31s %llu %95[^\n]", &d.minor, d.uuid,
		   d.pci, &d.memory, d.name) != 5)
		return;
	snprintf(path, sizeof(path), "/dev/nvidia%u", d.minor);
	if (!node_opens(path, O_RDWR))
		return;
	d.index = gpu_count++;
	devices[device_count++] = d;
}

static void add_mig(const char *line)
{
	struct fake_device d = {.is_mig = 1};
	unsigned int gi_cap, ci_cap;

	if (sscanf(line, "mig %u %95s %u %u %u %u %llu %95[^\n]", &d.minor,
		   d.uuid, &d.gi, &d.ci, &gi_cap, &ci_cap, &d.memory,
		   d.name) != 8)
		return;
	d.parent = gpu_by_minor(d.minor);
	if (!d.parent || !cap_opens(gi_cap) || !cap_opens(ci_cap))
		return;
	for (unsigned int i = 0; i < device_count; i++)
		if (devices[i].is_mig && devices[i].parent == d.parent)
			d.index++;
	memcpy(d.pci, d.parent->pci, sizeof(d.pci));
	devices[device_count++] = d;
}

/* The table's text, to be freed, or NULL. */
static char *load_table(void)
{
	char *text = NULL, *table = NULL, *hit;
	size_t mark = strlen(TABLE_MARK), length = 0;
	Dl_info self;
	FILE *file;
	long size;

	if (!dladdr((void *) load_table, &self))
		return NULL;
	file = fopen(self.dli_fname, "re");
	if (!file)
		return NULL;
	if (fseek(file, 0, SEEK_END) == 0 && (size = ftell(file)) > 0 &&
	    (text = calloc(1, (size_t) size + 1))) {
		rewind(file);
		length = fread(text, 1, (size_t) size, file);
	}
	fclose(file);
	/* The last mark counts: the library itself contains the first. */
	for (hit = text;
	     hit && (hit = memmem(hit, length - (size_t) (hit - text),
				  TABLE_MARK, mark));)
		table = hit += mark;
	if (table)
		table = strdup(table);
	free(text);
	return table;
}

static nvmlReturn_t read_table(void)
{
	char *table = load_table(), *line, *rest;

	if (!table)
		return NVML_ERROR_DRIVER_NOT_LOADED;
	device_count = gpu_count = 0;
	for (line = strtok_r(table, "\n", &rest);
	     line && device_count < MAX_DEVICES;
	     line = strtok_r(NULL, "\n", &rest)) {
		sscanf(line, "driver %63s", driver);
		add_gpu(line);
		add_mig(line);
	}
	free(table);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlInitWithFlags(unsigned int flags)
{
	nvmlReturn_t rc = NVML_SUCCESS;

	(void) flags;
	pthread_mutex_lock(&lock);
	if (users == 0)
		rc = node_opens("/dev/nvidiactl", O_RDWR)
			 ? read_table()
			 : NVML_ERROR_DRIVER_NOT_LOADED;
	if (rc == NVML_SUCCESS)
		users++;
	pthread_mutex_unlock(&lock);
	return rc;
}

nvmlReturn_t nvmlInit_v2(void)
{
	return nvmlInitWithFlags(0);
}

nvmlReturn_t nvmlInit(void)
{
	return nvmlInitWithFlags(0);
}

nvmlReturn_t nvmlShutdown(void)
{
	nvmlReturn_t rc = NVML_SUCCESS;

	pthread_mutex_lock(&lock);
	if (users == 0)
		rc = NVML_ERROR_UNINITIALIZED;
	else
		users--;
	pthread_mutex_unlock(&lock);
	return rc;
}

const char *nvmlErrorString(nvmlReturn_t code)
{
	switch (code) {
	case NVML_SUCCESS:
		return "The operation was successful";
	case NVML_ERROR_UNINITIALIZED:
		return "NVML was not first initialized with nvmlInit()";
	case NVML_ERROR_INVALID_ARGUMENT:
		return "A supplied argument is invalid";
	case NVML_ERROR_NOT_SUPPORTED:
		return "The requested operation is not available on target "
		       "device";
	case NVML_ERROR_NOT_FOUND:
		return "A query to find an object was unsuccessful";
	case NVML_ERROR_INSUFFICIENT_SIZE:
		return "An input argument is not large enough";
	case NVML_ERROR_DRIVER_NOT_LOADED:
		return "NVIDIA driver is not loaded";
	default:
		return "An internal driver error occurred";
	}
}

static nvmlReturn_t put_string(const char *value, char *out,
			       unsigned int length)
{
	if (!out)
		return NVML_ERROR_INVALID_ARGUMENT;
	if (strlen(value) >= length)
		return NVML_ERROR_INSUFFICIENT_SIZE;
	memcpy(out, value, strlen(value) + 1);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length)
{
	return users ? put_string(driver, version, length)
		     : NVML_ERROR_UNINITIALIZED;
}

nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned int length)
{
	return put_string("12.550.0", version, length);
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version)
{
	*version = 12040;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version)
{
	return nvmlSystemGetCudaDriverVersion(version);
}

/* -------------------------------------------------------------- finding
 * devices */

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count)
{
	if (!users)
		return NVML_ERROR_UNINITIALIZED;
	*count = gpu_count;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCount(unsigned int *count)
{
	return nvmlDeviceGetCount_v2(count);
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index,
					   nvmlDevice_t *out)
{
	if (!users)
		return NVML_ERROR_UNINITIALIZED;
	for (unsigned int i = 0; i < device_count; i++) {
		if (devices[i].is_mig || devices[i].index != index)
			continue;
		*out = &devices[i];
		return NVML_SUCCESS;
	}
	return NVML_ERROR_INVALID_ARGUMENT;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t *out)
{
	return nvmlDeviceGetHandleByIndex_v2(index, out);
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *out)
{
	if (!users)
		return NVML_ERROR_UNINITIALIZED;
	for (unsigned int i = 0; i < device_count; i++) {
		if (strcmp(devices[i].uuid, uuid) != 0)
			continue;
		*out = &devices[i];
		return NVML_SUCCESS;
	}
	return NVML_ERROR_NOT_FOUND;
}

static void legacy_pci(const char *pci, unsigned int *domain, unsigned int *bus,
		       unsigned int *dev)
{
	*domain = *bus = *dev = 0;
	sscanf(pci, "%x:%x:%x", domain, bus, dev);
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *pci,
					      nvmlDevice_t *out)
{
	unsigned int want[3], have[3];

	if (!users)
		return NVML_ERROR_UNINITIALIZED;
	legacy_pci(pci, &want[0], &want[1], &want[2]);
	for (unsigned int i = 0; i < device_count; i++) {
		legacy_pci(devices[i].pci, &have[0], &have[1], &have[2]);
		if (devices[i].is_mig || memcmp(want, have, sizeof(want)) != 0)
			continue;
		*out = &devices[i];
		return NVML_SUCCESS;
	}
	return NVML_ERROR_NOT_FOUND;
}

/* -------------------------------------------------------------- what a device
 * is */

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid,
			       unsigned int length)
{
	return put_string(device->uuid, uuid, length);
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name,
			       unsigned int length)
{
	return put_string(device->name, name, length);
}

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index)
{
	*index = device->index;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned int *minor)
{
	if (device->is_mig)
		return NVML_ERROR_NOT_SUPPORTED;
	*minor = device->minor;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci)
{
	memset(pci, 0, sizeof(*pci));
	legacy_pci(device->pci, &pci->domain, &pci->bus, &pci->device);
	snprintf(pci->busIdLegacy, sizeof(pci->busIdLegacy), "%04X:%02X:%02X.0",
		 pci->domain & 0xffff, pci->bus & 0xff, pci->device & 0xff);
	snprintf(pci->busId, sizeof(pci->busId), "%08X:%02X:%02X.0",
		 pci->domain, pci->bus & 0xff, pci->device & 0xff);
	pci->pciDeviceId = 0x20b010de;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPciInfo_v2(nvmlDevice_t device, nvmlPciInfo_t *pci)
{
	return nvmlDeviceGetPciInfo_v3(device, pci);
}

nvmlReturn_t nvmlDeviceGetPciInfo(nvmlDevice_t device, nvmlPciInfo_t *pci)
{
	return nvmlDeviceGetPciInfo_v3(device, pci);
}

/* -------------------------------------------------------------- MIG */

static unsigned int mig_count(nvmlDevice_t device)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < device_count; i++)
		n += devices[i].is_mig && devices[i].parent == device;
	return n;
}

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *now,
				  unsigned int *pending)
{
	if (device->is_mig)
		return NVML_ERROR_INVALID_ARGUMENT;
	*now = *pending = mig_count(device) ? NVML_DEVICE_MIG_ENABLE
					    : NVML_DEVICE_MIG_DISABLE;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device,
					    unsigned int *count)
{
	*count = mig_count(device) ? 7 : 0;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device,
						 unsigned int index,
						 nvmlDevice_t *out)
{
	for (unsigned int i = 0; i < device_count; i++) {
		if (!devices[i].is_mig || devices[i].parent != device ||
		    devices[i].index != index)
			continue;
		*out = &devices[i];
		return NVML_SUCCESS;
	}
	return NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device,
					 unsigned int *is_mig)
{
	*is_mig = (unsigned int) device->is_mig;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t mig,
							  nvmlDevice_t *out)
{
	if (!mig->is_mig)
		return NVML_ERROR_INVALID_ARGUMENT;
	*out = mig->parent;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t device, unsigned int *id)
{
	if (!device->is_mig)
		return NVML_ERROR_INVALID_ARGUMENT;
	*id = device->gi;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t device,
					    unsigned int *id)
{
	if (!device->is_mig)
		return NVML_ERROR_INVALID_ARGUMENT;
	*id = device->ci;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t device,
					nvmlDeviceAttributes_t *attributes)
{
	if (!device->is_mig)
		return NVML_ERROR_INVALID_ARGUMENT;
	memset(attributes, 0, sizeof(*attributes));
	attributes->multiprocessorCount = 42;
	attributes->gpuInstanceSliceCount =
	    attributes->computeInstanceSliceCount = 3;
	attributes->memorySizeMB = device->memory;
	return NVML_SUCCESS;
}

/* -------------------------------------------------------------- figures
 * They move slowly with the clock and differ by GPU, so that a plot of them
 * looks like one and a mixed-up GPU shows.
 */

static unsigned int wave(nvmlDevice_t device, unsigned int low,
			 unsigned int high)
{
	unsigned int phase =
	    (unsigned int) (time(NULL) / 5 + device->minor * 7) % 40;

	return low + (high - low) * (phase < 20 ? phase : 40 - phase) / 20;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
	memory->total = device->memory << 20;
	memory->used = memory->total / 100 * wave(device, 5, 60);
	memory->free = memory->total - memory->used;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device,
					nvmlMemory_v2_t *memory)
{
	nvmlMemory_t v1;

	nvmlDeviceGetMemoryInfo(device, &v1);
	memory->total = v1.total;
	memory->used = v1.used;
	memory->reserved = 0;
	memory->free = v1.free;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device,
					   nvmlUtilization_t *utilization)
{
	if (device->is_mig)
		return NVML_ERROR_NOT_SUPPORTED;
	utilization->gpu = wave(device, 0, 97);
	utilization->memory = wave(device, 0, 55);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device,
				     unsigned int *milliwatts)
{
	if (device->is_mig)
		return NVML_ERROR_NOT_SUPPORTED;
	*milliwatts = wave(device, 55000, 390000);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device,
					     unsigned int *milliwatts)
{
	(void) device;
	*milliwatts = 400000;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerManagementLimit(nvmlDevice_t device,
					       unsigned int *milliwatts)
{
	return nvmlDeviceGetEnforcedPowerLimit(device, milliwatts);
}

nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device,
						 unsigned long long *millijoule)
{
	if (device->is_mig)
		return NVML_ERROR_NOT_SUPPORTED;
	/* 200 W since some moment in 2023: only has to grow. */
	*millijoule = (unsigned long long) (time(NULL) - 1700000000) * 200000 +
		      device->minor;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, int sensor,
				      unsigned int *celsius)
{
	(void) sensor;
	*celsius = wave(device, 31, 74);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(
    nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *processes)
{
	(void) device;
	(void) processes;
	*count = 0;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPersistenceMode(nvmlDevice_t device,
					  unsigned int *mode)
{
	(void) device;
	*mode = 1;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major,
						int *minor)
{
	*major = 8;
	*minor = strstr(device->name, "L40S") ? 9 : 0;
	return NVML_SUCCESS;
}
