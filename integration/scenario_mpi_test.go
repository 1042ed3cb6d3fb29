//go:build integration

package integration

import (
	"strings"
	"testing"
)

// Each rank of mpihello says how many it found, and what it read from memory
// that it shares with its neighbour on the node.
const (
	allRanks = "of 4 on"
	together = "2 here, sum 10, shared 4711"
)

func TestScenario_J4_mpi_spans_tasks_and_nodes(t *testing.T) {
	launchers := map[string][]string{
		"srun pmix": {"srun", "--time=2", "-N2", "--ntasks-per-node=2", "--mpi=pmix", "SEAL", "mpihello"},
		"mpirun":    {"salloc", "--time=2", "-N2", "--ntasks-per-node=2", "SEAL", "mpirun", "mpihello"},
	}
	for name, launcher := range launchers {
		for where, seal := range seals {
			t.Run(name+" "+where, func(t *testing.T) {
				if strings.Contains(name, "pmix") {
					needsPMIx(t)
				}
				command := []string{"timeout", "80"}
				for _, word := range launcher {
					command = append(command, strings.Replace(word, "SEAL", seal, 1))
				}
				out := openMPI(t, func() result { return as(t, "alice", login, command...) }).ok(t)
				if n := strings.Count(out, allRanks); n != 4 {
					t.Errorf("%d ranks of 4 found each other:\n%s", n, out)
				}
				if n := strings.Count(out, together); n != 4 {
					t.Errorf("%d ranks of 4 share memory with their neighbour:\n%s", n, out)
				}
			})
		}
	}
	for where, seal := range seals {
		t.Run("srun pmi2 "+where, func(t *testing.T) {
			if out := srun(t, "alice", "-N2", "--ntasks-per-node=2", "--mpi=pmi2", seal, "pmi2hello").ok(t); strings.Count(out, "of 4") != 4 {
				t.Errorf("PMI-2:\n%s", out)
			}
		})
	}
}

// Open MPI goes on by TCP, in silence, where memory cannot be shared; told to use
// nothing but memory, it fails.
func TestScenario_J4_tasks_of_a_node_talk_by_shared_memory(t *testing.T) {
	hello := func(transports, seal, launcher string) result {
		command := []string{"timeout", "80", "salloc", "-Q", "--time=2", "-w", node1, "-n2", seal}
		command = prefix(append(command, strings.Fields(launcher+" mpihello")...), "OMPI_MCA_pml=ob1", "OMPI_MCA_btl="+transports)
		return openMPI(t, func() result { return as(t, "alice", login, command...) })
	}
	launchers := []string{"mpirun"}
	if suite() == "trixie" {
		launchers = append(launchers, "srun --mpi=pmix") // see needsPMIx
	}
	for where, seal := range seals {
		for _, launcher := range launchers {
			t.Run(launcher+" "+where, func(t *testing.T) {
				if out := hello("self,sm", seal, launcher).ok(t); strings.Count(out, "of 2 on "+node1+", 2 here, sum 3, ") != 2 {
					t.Errorf("prints\n%s", out)
				}
			})
		}
	}
	if r := hello("self", "--carme=none", "mpirun"); r.code == 0 {
		t.Errorf("without any transport the ranks talk too:\n%s", r.out)
	}
}

func TestScenario_J4_mpirun_inside_a_batch_script_in_the_image(t *testing.T) {
	script, ranks := "mpirun mpihello; srun --mpi=pmix mpihello", 8
	if suite() != "trixie" {
		script, ranks = "mpirun mpihello", 4 // see needsPMIx
	}
	out := openMPI(t, func() result {
		return result{out: output(t, "alice", sbatch(t, "alice", "-N2", "--ntasks-per-node=2", "--carme=base", "--wrap", script))}
	}).out
	if n := strings.Count(out, together); n != ranks || strings.Count(out, allRanks) != ranks {
		t.Errorf("%d ranks of %d share memory with their neighbour:\n%s", n, ranks, out)
	}
}

// openMPI runs a program of Open MPI again where that met a fault of its own, which
// plain jobs meet as often: while a rank waits for the others in MPI_Init it dies of
// the first message of one that waits no more (open-mpi/ompi issue 12495).
func openMPI(t *testing.T, run func() result) result {
	t.Helper()
	for range 4 {
		r := run()
		if !strings.Contains(r.out+r.err, "(mca_pml_ob1_recv_frag_callback_match+") {
			return r
		}
		t.Log("Open MPI died in MPI_Init; once more")
	}
	return run()
}

// needsPMIx skips where Slurm has no plugin for it.
func needsPMIx(t *testing.T) {
	t.Helper()
	if suite() != "trixie" {
		t.Skip("Debian's Slurm 26.05 has no PMIx plugin")
	}
}
