package jobs

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/carme-hpc/carme/internal/slurm"
	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/backend/nodes"
	"github.com/carme-hpc/carme/portal/backend/problem"
)

// words are said to a user: in English, and by a code and arguments for clients
// that speak other languages (portal/web/locales, said.CODE).
type words struct {
	code string
	args []string
	text string
}

// say fills the arguments into the text, as %s.
func say(code, text string, args ...string) words {
	for _, arg := range args {
		text = strings.Replace(text, "%s", arg, 1)
	}
	return words{code, args, text}
}

func (w words) event(at time.Time, stage string) api.Event {
	return api.Event{Time: at, Stage: stage, Text: w.text, Code: w.code, Args: w.args}
}

// in says it in an answer.
func (w words) in(e *problem.Error) *problem.Error {
	e.Body.Words = &api.Words{Code: w.code, Args: w.args}
	return e
}

// conflict says that the state is another one than the caller thinks.
func conflict(w words) error { return w.in(problem.Conflict(w.text)) }

func (w words) end(j *api.Job) { j.End, j.EndCode, j.EndArgs = w.text, w.code, w.args }

// What became of a submission is stored in English.
const (
	slurmRefused = "Slurm refused it: "
	slurmSilent  = "Slurm did not answer; nothing was submitted."
	slurmNever   = "Slurm never got the job. You may start it again."
)

// notSubmitted is the stored reason why a submission became no job.
func notSubmitted(stored string) words {
	if cause, ok := strings.CutPrefix(stored, slurmRefused); ok {
		return say("end.refused", slurmRefused+"%s", cause)
	}
	switch stored {
	case slurmSilent:
		return say("end.silent", stored)
	case slurmNever:
		return say("end.never", stored)
	}
	return words{text: stored}
}

// slurmIO is what an end looks like where slurmstepd could not open the job's files: it
// tells ESLURMD_IO_ERROR (slurm_errno.h, 4021), which is read as a status of wait(2).
const slurmIO = 4021 & 0x7f

// Exit codes of a shell (POSIX, Shell Command Language 2.8.2).
const (
	exitNotExecutable = 126
	exitNotFound      = 127
	exitSignal        = 128 // and the signal
)

var exits = map[int]string{
	exitNotExecutable:                 "A command in it could not be run (exit code 126): the file is no program, or you may not run it. Its error output names it.",
	exitNotFound:                      "A command in it was not found (exit code 127). Its error output names it; check the name and that the image has it.",
	exitSignal + int(syscall.SIGKILL): "A program in it was killed (exit code 137), most often for want of memory. Start it with more memory.",
}

// reason says why a job ended.
func (s *Service) reason(row *slurm.QueueRow) words {
	node, starved := s.starved[row.ID]
	starved = starved && slices.Contains(slurm.Expand(row.NodeList), node) // a node speaks of its own jobs only
	if starved || row.State == "OUT_OF_MEMORY" {
		return say("end.memory", "It needed more memory than it asked for and was ended. Start it with more memory.")
	}
	switch row.State {
	case "COMPLETED":
		return say("end.completed", "It finished without an error.")
	case "CANCELLED":
		return say("end.cancelled", "It was cancelled.")
	case "TIMEOUT":
		return say("end.timeout", "Its time was up. Start it with a longer time limit.")
	case "DEADLINE":
		return say("end.deadline", "It could not have ended before its deadline.")
	case "PREEMPTED":
		return say("end.preempted", "It had to make way for a job of higher priority.")
	case "NODE_FAIL":
		return say("end.node", "Its node failed. Start it again.")
	case "BOOT_FAIL", "LAUNCH_FAILED":
		return say("end.launch", "Its node could not start it. Start it again; if that repeats, tell your administrators.")
	case "REVOKED":
		return say("end.revoked", "Another cluster took it.")
	case "FAILED":
		switch {
		case row.Signal == slurmIO:
			return say("end.files", "Slurm could not open its output, error or input file. Check that its directory is there and that you may write into it, then start it again.")
		case row.Signal > 0:
			return say("end.signal", "It was ended by signal %s. Its error output may say why.", strconv.Itoa(row.Signal))
		case row.ExitCode == exitNotExecutable, row.ExitCode == exitNotFound:
			return say(fmt.Sprintf("end.exit.%d", row.ExitCode), exits[row.ExitCode])
		case row.ExitCode == exitSignal+int(syscall.SIGKILL):
			return say("end.exit.137", exits[row.ExitCode])
		case row.ExitCode > exitSignal && row.ExitCode <= exitSignal+64:
			return say("end.exit.signal", "A program in it was ended by signal %s (exit code %s). Its error output may say why.",
				strconv.Itoa(row.ExitCode-exitSignal), strconv.Itoa(row.ExitCode))
		case row.ExitCode > 0:
			return say("end.exit", "It ended with exit code %s. Its error output may say why.", strconv.Itoa(row.ExitCode))
		}
		return say("end.failed", "It failed. Its error output may say why.")
	}
	return say("end.over", "It has ended.")
}

// staged says what a stage on a node means.
func staged(node, stage string) words {
	switch stage {
	case api.StageSealed:
		return say("event.sealed", "The job is sealed on %s.", node)
	case api.StageImage:
		return say("event.image", "The job is sealed on %s; its image is starting.", node)
	case api.StageApp:
		return say("event.app", "The app is starting on %s.", node)
	case api.StageReady:
		return say("event.ready", "The app answers.")
	case api.StageEnded:
		return say("event.stopped", "Its owner stopped it.")
	}
	return words{text: stage}
}

// silent says that a node was not heard of.
func silent(node string, since time.Time) words {
	at := since.UTC().Format("15:04:05 MST")
	return say("problem.node", "Nothing has been heard from %s since %s; the job goes on, its session may not answer.", node, at)
}

// noOutput is the answer of an output that is not there.
func noOutput(w words) api.Output { return api.Output{Problem: w.text, Code: w.code, Args: w.args} }

// badHome is the answer about a home in which nothing can be started.
func badHome(h *api.Home, w words) {
	h.OK, h.Message, h.Code, h.Args = false, w.text, w.code, w.args
}

// unusableHome says by an agent's code (nodeagent/control) what is wrong with a
// home; text is what the agent says itself.
func unusableHome(code, text string) words {
	switch code {
	case "missing":
		return say("home.missing", "Your home directory does not exist. Tell your administrators.")
	case "denied":
		return say("home.denied", "Your home directory is closed to you. Tell your administrators.")
	case "quota":
		return say("home.quota", "Your home directory is full: your quota is used up. Remove something before you start.")
	case "space":
		return say("home.space", "Your home directory is full: its file system has no space left. Remove something before you start.")
	case "readonly":
		return say("home.readonly", "Your home directory is read-only. Tell your administrators.")
	case "server":
		return say("home.server", "Your home directory cannot be reached: its file server does not answer. What you start now will not come up; try again later.")
	}
	return say("home.unusable", "Your home directory cannot be used: %s", text)
}

// unreadable says the same of an output file.
func unreadable(e nodes.RefusedError, file string) words {
	switch e.Code {
	case "missing":
		return say("output.missing", "There is no output: nothing has written to %s.", file)
	case "kind":
		return say("output.kind", "There is no output to show: %s is no ordinary file.", file)
	case "denied":
		return say("output.denied", "The output cannot be read: you may not open %s.", file)
	case "server":
		return say("output.server", "The output cannot be read: the file server of %s does not answer.", file)
	}
	return say("output.refused", "The output cannot be read: %s", plain(e.Text))
}

// wrongs are the fields of a request that are wrong, and why.
type wrongs map[string]words

// in fills them into an answer.
func (w wrongs) in(e *problem.Error) *problem.Error {
	e.Body.Fields, e.Body.FieldCodes = map[string]string{}, map[string]api.Words{}
	for field, why := range w {
		e.Body.Fields[field] = why.text
		if why.code != "" {
			e.Body.FieldCodes[field] = api.Words{Code: why.code, Args: why.args}
		}
	}
	return e
}

func fewMB(mb int64) words {
	return say("home.full", "Your home directory has only %s MB left; remove something before you start.", fmt.Sprint(mb))
}
