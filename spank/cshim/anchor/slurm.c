/*
 * carme-slurm: Slurm's commands inside any image. The node's /usr lies at
 * /run/carme/host/usr, read-only; this program, called by a command's name,
 * runs the node's command with the node's own loader and libraries, so that
 * the image needs neither Slurm nor the same libc.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HOST_USR "/run/carme/host/usr"

#if defined(__x86_64__)
#define LOADER HOST_USR "/lib64/ld-linux-x86-64.so.2"
#define LIBRARIES HOST_USR "/lib/x86_64-linux-gnu:" HOST_USR "/lib64"
#elif defined(__aarch64__)
#define LOADER HOST_USR "/lib/ld-linux-aarch64.so.1"
#define LIBRARIES HOST_USR "/lib/aarch64-linux-gnu:" HOST_USR "/lib64"
#else
#error "name the loader of this architecture"
#endif

static const char *const directory[] = {HOST_USR "/bin/",
					HOST_USR "/local/bin/"};

int main(int argc, char **argv)
{
	const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
	const char *name = argc > 0 ? (slash ? slash + 1 : argv[0]) : "";
	char **args = calloc((size_t) argc + 8, sizeof(*args));
	char path[4096] = "";
	int n = 0;

	for (size_t i = 0; i < sizeof(directory) / sizeof(directory[0]); i++) {
		snprintf(path, sizeof(path), "%s%s", directory[i], name);
		if (!access(path, X_OK))
			break;
	}
	if (!args)
		return 1;
	args[n++] = (char *) LOADER;
	args[n++] = (char *) "--library-path";
	args[n++] = (char *) LIBRARIES;
	args[n++] = (char *) "--argv0";
	args[n++] = (char *) name;
	args[n++] = path;
	for (int i = 1; i < argc; i++)
		args[n++] = argv[i];
	execv(LOADER, args);
	fprintf(stderr, "carme: run the node's %s: %s\n", name,
		strerror(errno));
	return 127;
}
