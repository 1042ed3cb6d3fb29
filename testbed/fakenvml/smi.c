/*
 * `nvidia-smi -L` of the testbed: lists what the caller's libnvidia-ml.so.1
 * shows, in the real tool's words. The library is opened by name, as the real
 * tool and go-nvml do, so this file can lie in images that bring no library.
 */
#include "fakenvml.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

static void *nvml;

static void *need(const char *name)
{
	void *address = dlsym(nvml, name);

	if (!address) {
		fprintf(stderr, "nvidia-smi: the library lacks %s\n", name);
		exit(EXIT_FAILURE);
	}
	return address;
}

int main(void)
{
	nvmlReturn_t (*init)(void), (*count_of)(unsigned int *);
	nvmlReturn_t (*by_index)(unsigned int, nvmlDevice_t *);
	nvmlReturn_t (*mig_by_index)(nvmlDevice_t, unsigned int,
				     nvmlDevice_t *);
	nvmlReturn_t (*mig_max)(nvmlDevice_t, unsigned int *);
	nvmlReturn_t (*name_of)(nvmlDevice_t, char *, unsigned int);
	nvmlReturn_t (*uuid_of)(nvmlDevice_t, char *, unsigned int);
	const char *(*text)(nvmlReturn_t);
	unsigned int count = 0, migs;
	char name[96], uuid[96];
	nvmlDevice_t gpu, mig;
	nvmlReturn_t rc;

	nvml = dlopen("libnvidia-ml.so.1", RTLD_NOW);
	if (!nvml) {
		fprintf(stderr, "NVIDIA-SMI couldn't find libnvidia-ml.so "
				"library in your system.\n");
		return EXIT_FAILURE;
	}
	init = need("nvmlInit_v2");
	count_of = need("nvmlDeviceGetCount_v2");
	by_index = need("nvmlDeviceGetHandleByIndex_v2");
	mig_by_index = need("nvmlDeviceGetMigDeviceHandleByIndex");
	mig_max = need("nvmlDeviceGetMaxMigDeviceCount");
	name_of = need("nvmlDeviceGetName");
	uuid_of = need("nvmlDeviceGetUUID");
	text = need("nvmlErrorString");

	rc = init();
	if (rc != NVML_SUCCESS) {
		fprintf(stderr, "Failed to initialize NVML: %s\n", text(rc));
		return rc;
	}
	count_of(&count);
	if (count == 0)
		printf("No devices found.\n");
	for (unsigned int i = 0; i < count; i++) {
		by_index(i, &gpu);
		name_of(gpu, name, sizeof(name));
		uuid_of(gpu, uuid, sizeof(uuid));
		printf("GPU %u: %s (UUID: %s)\n", i, name, uuid);
		migs = 0;
		mig_max(gpu, &migs);
		for (unsigned int m = 0; m < migs; m++) {
			if (mig_by_index(gpu, m, &mig) != NVML_SUCCESS)
				continue;
			name_of(mig, name, sizeof(name));
			uuid_of(mig, uuid, sizeof(uuid));
			printf("  MIG %-16s Device %2u: (UUID: %s)\n", name, m,
			       uuid);
		}
	}
	return EXIT_SUCCESS;
}
