/*
 * anchor.h - one anchor per Carme job and node. It lives in the job's extern
 * step, in the host's namespaces, as root; it holds the job's namespaces by
 * descriptors, is the parent of the job's PID 1 and of its containers, and
 * hands all of them to the steps that ask on its socket. It reads no file and
 * no string that a user controls, except to pass them on to execve().
 */
#ifndef CARME_ANCHOR_H
#define CARME_ANCHOR_H

#include <sys/types.h>

#include "../common/msg.h"
#include "../common/record.h"

/* Namespaces that the core prepares, in the order of their descriptors. */
enum { NS_MNT, NS_IPC, NS_UTS, NS_NET, NS_COUNT };

struct namespaces {
	int fd[NS_COUNT]; /* -1: the host's is kept (network) */
	int pid;	  /* /proc/PID1/ns/pid */
};

struct user {
	uid_t uid;
	gid_t gid;
	const struct record *plan; /* "gids" entries: supplementary groups */
};

/* places.c: fork into the cgroups that extern_places() has opened, as fork(2).
 * In the child *placed tells whether it is in all of them. */
pid_t places_fork(const struct record *kinds, struct msg_fds *fds, int *placed);

/* pid1.c: fork the job's PID 1 into ns; its pidfd, or -1 with *why set. */
int pid1_start(struct namespaces *ns, pid_t *pid, const char **why);

/* Enter the prepared namespaces in a freshly forked child. 0 or -1. */
int enter_namespaces(const struct namespaces *ns);

/* container.c */
enum container_state { CONTAINER_STARTING, CONTAINER_READY, CONTAINER_FAILED };

struct container {
	struct container *next;
	char *key; /* resolved image, as the plan names it */
	enum container_state state;
	pid_t pid;
	int pidfd;
	int sock;	   /* from the hold program; it keeps the container */
	int output;	   /* memfd with what the runtime printed */
	int userns, mntns; /* of the hold program, once ready */
	struct record env; /* the image's environment, "env" entries */
	char why[512];
};

/* image is a mount that is attached nowhere; "image" of spec says where the
 * runtime looks for it. */
struct container *container_start(const struct namespaces *ns,
				  const struct user *user,
				  const struct record *spec, int image);
/* The hold program spoke, or its socket closed. */
void container_on_socket(struct container *c, const struct namespaces *ns);
/* The runtime process ended. */
void container_on_exit(struct container *c);

/* stepkill.c: SIGKILL what is left of a step whose slurmstepd is gone. */
void stepkill(const char *step);

#endif
