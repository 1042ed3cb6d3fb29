package main

import (
	"context"
	"fmt"
	"io"
	"strings"
)

var (
	plain  = []string{"--gres=gpu:1"}
	sealed = []string{"--carme=base", "--gres=gpu:1"}
)

func steps() []step {
	return []step{
		{title: "prepare this machine", do: func(ctx context.Context, d *demo) error {
			return d.tool(ctx, "tools/prepare", "testbed")
		}},
		{title: "build Carme and bring the cluster up", do: func(ctx context.Context, d *demo) error {
			return d.tool(ctx, "env", "TESTBED_PUBLISH=8443", "make", "--no-print-directory", "testbed")
		}},
		{title: "without Carme: alice shares everything", seen: true, do: without},
		{title: "with Carme: alice has one GPU and no neighbours", seen: true, do: with},
		{title: "the proof, from inside the job", seen: true, do: proof},
		{title: "mallory attacks from inside a sealed job", seen: true, do: attack},
		{title: "the jobs are over: nothing is left", do: nothingLeft},
		{title: "the portal: JupyterLab in a sealed job, from your browser", do: portal},
	}
}

// What alice runs, with Carme and without.
const (
	listGPUs = "ls -1 /dev/nvidia[0-9]"
	readTmp  = "ls -A /tmp; cat " + notes
)

func processes(uid string) string { return "ps -o uid,pid,args -u " + uid }

func without(ctx context.Context, d *demo) error {
	return d.lookAll(
		ctx,
		sight{says: "one GPU is hers, and the node shows all four", user: "alice", srun: plain, shell: listGPUs, want: []string{`(?s)nvidia0.*nvidia1.*nvidia2.*nvidia3`}},
		sight{says: "bob's processes, with what he typed", user: "alice", srun: plain, shell: processes(d.neighbour.uid), want: []string{draft}},
		sight{says: "bob's files in /tmp", user: "alice", srun: plain, shell: readTmp, want: []string{"bob-notes", draft}},
	)
}

func with(ctx context.Context, d *demo) error {
	return d.lookAll(
		ctx,
		sight{says: "the one GPU that Slurm gave her", user: "alice", srun: sealed, shell: listGPUs, want: []string{`^/dev/nvidia[0-3]\s*$`}},
		sight{says: "bob is not there", user: "alice", srun: sealed, shell: processes(d.neighbour.uid), want: []string{"PID"}, never: []string{draft, "train.py"}, fails: true},
		sight{says: "these are all the processes there are", user: "alice", srun: sealed, shell: "ps -eo user,pid,args", want: []string{"ps -eo"}, never: []string{draft, "slurmd", "munged"}},
		sight{says: "/tmp is her own", user: "alice", srun: sealed, shell: readTmp, want: []string{"No such file"}, never: []string{draft}, fails: true},
		sight{says: "an image of its own, the same user, Slurm's view of the GPU", user: "alice", srun: sealed, shell: "cat /etc/carme-image; id -un; echo CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES NVIDIA_VISIBLE_DEVICES=$NVIDIA_VISIBLE_DEVICES", want: []string{"image", "alice", "CUDA_VISIBLE_DEVICES=[0-9]", "NVIDIA_VISIBLE_DEVICES=(GPU|MIG)-"}},
	)
}

func proof(ctx context.Context, d *demo) error {
	return d.look(ctx, sight{
		says: "what was sealed, and how it was checked", user: "alice", srun: sealed, shell: "carme proof",
		want: []string{`pid +own`, `every check is OK`}, never: []string{draft},
	})
}

func attack(ctx context.Context, d *demo) error {
	pid := d.neighbour.pid
	try := func(says, shell string, want ...string) sight {
		return sight{says: says, user: "mallory", srun: sealed, shell: shell, want: want, never: []string{draft}, fails: true}
	}
	return d.lookAll(
		ctx,
		try("open the other GPUs", "for n in 0 1 2 3; do test -e /dev/nvidia$n || cat /dev/nvidia$n; done; false", `(?s)No such file.*No such file.*No such file`),
		try("make their device files", "mknod /tmp/gpu c 195 0", "not permitted"),
		try("make them as root of a user namespace", "unshare -Ur mknod /tmp/gpu c 195 0", "(not permitted|denied|failed)"),
		try("trace bob's process", "strace -p "+pid, "No such process"),
		try("kill it", "kill -9 "+pid, "No such process"),
		try("read its /tmp, directly and through /proc", "cat "+notes+" /proc/"+pid+"/root"+notes, `(?s)No such file.*No such file`),
		try("find its command line", "grep -a [t]oken= /proc/[0-9]*/cmdline"),
	)
}

func (d *demo) lookAll(ctx context.Context, sights ...sight) error {
	for _, s := range sights {
		if err := d.look(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

func nothingLeft(ctx context.Context, d *demo) error {
	const show = "ls -A /run/carme/jobs 2>/dev/null; grep -c /run/carme/jobs/ /proc/self/mountinfo; pgrep -a 'carme-(anchor|init|hold|host|session)'"
	fmt.Fprintf(d.out, "\n# directories of jobs, mounts, processes of Carme on the node\nroot@%s# %s\n", node, show)
	var left string
	err := until(ctx, d.farewell, func() bool {
		left, _, _ = d.run(ctx, io.Discard, "docker", "exec", d.prefix+node, "sh", "-c", show)
		return strings.TrimSpace(left) == "0"
	})
	fmt.Fprint(d.out, left)
	if err != nil {
		return fmt.Errorf("something of the jobs is left on the node: %w", err)
	}
	return nil
}
