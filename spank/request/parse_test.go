package request

import (
	"errors"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/carme-hpc/carme/internal/wire"
)

// given reads "--carme-net=host" words as the plugin sees them.
func given(words ...string) []Given {
	var all []Given
	for _, w := range words {
		name, v, _ := strings.Cut(strings.TrimPrefix(w, "--"), "=")
		all = append(all, Given{Name: name, Value: v})
	}
	return all
}

func TestParseUnderstandsWhatIsTyped(t *testing.T) {
	cases := map[string]struct {
		in   Input
		want Request
	}{
		"nothing":                   {Input{}, Request{}},
		"alone":                     {Input{Options: given("--carme")}, Request{Enabled: true}},
		"null from the environment": {Input{Options: given("--carme=(null)")}, Request{Enabled: true}},
		"name":                      {Input{Options: given("--carme=base-1.2_x+y")}, Request{Enabled: true, Image: "base-1.2_x+y"}},
		"explicitly no image":       {Input{Options: given("--carme=none")}, Request{Enabled: true, Image: ImageNone}},
		"path":                      {Input{Options: given("--carme=/home/alice/my image.sif")}, Request{Enabled: true, Image: "/home/alice/my image.sif"}},
		"path of a directory":       {Input{Options: given("--carme=/images/base-dir/")}, Request{Enabled: true, Image: "/images/base-dir"}},
		"list":                      {Input{Context: ContextLocal, Options: given("--carme=list")}, Request{Enabled: true, Action: ActionList}},
		"help":                      {Input{Context: ContextAllocator, Options: given("--carme=help")}, Request{Enabled: true, Action: ActionHelp}},
		"everything": {
			Input{Options: given("--carme=base", "--carme-net=private", "--carme-bind=/data,/scratch/a:/mnt/a:ro,/b:/mnt/b:rw",
				"--carme-workdir=/data/x/", "--carme-home=no", "--carme-overlay=tmpfs", "--carme-conda=torch", "--carme-app=lab", "--carme-debug")},
			Request{
				Enabled: true, Image: "base", Net: NetPrivate, Workdir: "/data/x", Home: No, Overlay: OverlayTmpfs, Conda: "torch", App: "lab", Debug: true,
				Binds: []Bind{{Src: "/data", Dst: "/data"}, {Src: "/scratch/a", Dst: "/mnt/a", ReadOnly: true}, {Src: "/b", Dst: "/mnt/b"}},
			},
		},
		"directories": {
			Input{Options: given("--carme", "--carme-overlay=/scratch/o", "--carme-conda=/home/alice/env", "--carme-home=yes", "--carme-debug=(null)")},
			Request{Enabled: true, Overlay: "/scratch/o", Conda: "/home/alice/env", Home: Yes, Debug: true},
		},
		"targets in usual places": {
			Input{Options: given("--carme", "--carme-bind=/a:/tmp,/b:/tmp/b,/c:/usr/local/c,/d:/var/tmp,/run/user/5:/run/user/5,/devel,/process")},
			Request{Enabled: true, Binds: []Bind{
				{Src: "/a", Dst: "/tmp"},
				{Src: "/b", Dst: "/tmp/b"},
				{Src: "/c", Dst: "/usr/local/c"},
				{Src: "/d", Dst: "/var/tmp"},
				{Src: "/run/user/5", Dst: "/run/user/5"},
				{Src: "/devel", Dst: "/devel"},
				{Src: "/process", Dst: "/process"},
			}},
		},
		"Apptainer's binds": {
			Input{Options: given("--carme=base", "--carme-bind=/b"), Env: map[string]string{"APPTAINER_BIND": "/data:/mnt:ro,/b", "SINGULARITY_BINDPATH": "/b"}},
			Request{Enabled: true, Image: "base", Binds: []Bind{{Src: "/b", Dst: "/b"}}, ImageBinds: []Bind{{Src: "/data", Dst: "/mnt", ReadOnly: true}, {Src: "/b", Dst: "/b"}}},
		},
		"Apptainer's binds without an image": {
			Input{Options: given("--carme=none"), Env: map[string]string{"APPTAINER_BIND": "/dev:/mnt"}}, Request{Enabled: true, Image: ImageNone},
		},
		"default on":           {Input{Env: map[string]string{"CARME": "yes", "CARME_NET": "private"}}, Request{Enabled: true, Net: NetPrivate}},
		"default on by number": {Input{Env: map[string]string{"CARME": "1", "CARME_DEBUG": "1"}}, Request{Enabled: true, Debug: true}},
		"default image":        {Input{Env: map[string]string{"CARME": "base"}}, Request{Enabled: true, Image: "base"}},
		"default off":          {Input{Env: map[string]string{"CARME": "no", "CARME_NET": "bogus"}}, Request{}},
		"default empty":        {Input{Env: map[string]string{"CARME": ""}}, Request{}},
		"all defaults": {
			Input{Env: map[string]string{
				"CARME": "base", "CARME_NET": "host", "CARME_BIND": "/data:/mnt", "CARME_WORKDIR": "/mnt", "CARME_HOME": "no",
				"CARME_OVERLAY": "none", "CARME_CONDA": "torch", "CARME_DEBUG": "no", "CARME_OTHER": "\x00",
			}},
			Request{Enabled: true, Image: "base", Net: NetHost, Binds: []Bind{{Src: "/data", Dst: "/mnt"}}, Workdir: "/mnt", Home: No, Overlay: OverlayNone, Conda: "torch"},
		},
		"typed wins over default": {
			Input{Options: given("--carme=other", "--carme-net=host"), Env: map[string]string{"CARME": "base", "CARME_NET": "private", "CARME_HOME": "no"}},
			Request{Enabled: true, Image: "other", Net: NetHost, Home: No},
		},
		"typed without image wins over default": {
			Input{Options: given("--carme"), Env: map[string]string{"CARME": "base"}},
			Request{Enabled: true},
		},
		"no-carme wins over default":         {Input{Options: given("--no-carme"), Env: map[string]string{"CARME": "base", "CARME_NET": "bogus"}}, Request{}},
		"switched on and off by word":        {Input{Options: given("--carme=no")}, Request{}},
		"switched on by word":                {Input{Options: given("--carme=yes")}, Request{Enabled: true}},
		"left over on a node":                {Input{Context: ContextRemote, Options: given("--carme-net=private")}, Request{}},
		"default of an option unused":        {Input{Options: []Given{{"carme-net", "private", true}}}, Request{}},
		"default beside off":                 {Input{Options: []Given{{"carme-net", "private", true}, {"no-carme", "", false}}}, Request{}},
		"typed image wins over inherited no": {Input{Options: []Given{{"carme", "no", true}, {"carme", "base", false}}}, Request{Enabled: true, Image: "base"}},
		"inherited": {
			Input{Options: []Given{{"carme", "base", true}, {"carme-net", "private", true}}},
			Request{Enabled: true, Image: "base", Net: NetPrivate},
		},
		"typed wins over inherited": {
			Input{Options: []Given{{"carme", "base", true}, {"carme-net", "private", true}, {"carme", "other", false}}},
			Request{Enabled: true, Image: "other", Net: NetPrivate},
		},
		"inherited no-carme wins over default": {
			Input{Options: []Given{{"no-carme", "", true}}, Env: map[string]string{"CARME": "base"}}, Request{},
		},
		"typed no-carme wins over inherited": {Input{Options: []Given{{"carme", "base", true}, {"no-carme", "", false}}}, Request{}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := Parse(c.in)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
			again, err := FromRecord(got.Record())
			if err != nil || !reflect.DeepEqual(again, got) {
				t.Errorf("by record %+v, %v", again, err)
			}
		})
	}
}

func TestParseRefusesWithCauseAndRemedy(t *testing.T) {
	long := strings.Repeat("a", 1<<20)
	cases := map[string]struct {
		in   Input
		says string
	}{
		"both switches":       {Input{Options: given("--carme", "--no-carme")}, "--carme and --no-carme are both given; give one of them"},
		"switch with value":   {Input{Options: given("--no-carme=base")}, "--no-carme takes no value"},
		"no-carme and net":    {Input{Options: given("--no-carme", "--carme-net=host")}, "--carme-net and --no-carme are both given"},
		"net without carme":   {Input{Options: given("--carme-net=private")}, "no effect without --carme; add --carme"},
		"repeated":            {Input{Options: given("--carme", "--carme-net=host", "--carme-net=host")}, "--carme-net is given 2 times; give it once"},
		"repeated carme":      {Input{Options: given("--carme=a", "--carme")}, "--carme is given 2 times"},
		"repeated bind":       {Input{Options: given("--carme", "--carme-bind=/a", "--carme-bind=/b")}, "with commas between"},
		"unknown":             {Input{Options: given("--carme-nett=x")}, `there is no option "carme-nett"`},
		"list in a job":       {Input{Context: ContextRemote, Options: given("--carme=list")}, "only shows something"},
		"list inherited":      {Input{Context: ContextLocal, Options: []Given{{"carme", "list", true}}}, "only shows something"},
		"list by default":     {Input{Context: ContextLocal, Env: map[string]string{"CARME": "list"}}, "CARME=list only shows"},
		"image with blank":    {Input{Options: given("--carme=my image")}, "no name of an image; --carme=list shows"},
		"image with shell":    {Input{Options: given("--carme=$(id)")}, "no name of an image"},
		"image with newline":  {Input{Options: given("--carme=a\nb")}, `"a\nb" is no name`},
		"image with NUL":      {Input{Options: given("--carme=/a\x00b")}, `"/a\x00b": the path has characters`},
		"image relative":      {Input{Options: given("--carme=./x.sif")}, "the path is relative; write it from / on"},
		"image by tilde":      {Input{Options: given("--carme=~/x.sif")}, "write $HOME"},
		"image by URI":        {Input{Options: given("--carme=docker://ubuntu")}, "images by docker:// are not available yet"},
		"image upwards":       {Input{Options: given("--carme=/home/../etc/x.sif")}, "the path has .. in it"},
		"image with dot":      {Input{Options: given("--carme=/home/./x.sif")}, "the path has . in it"},
		"image with //":       {Input{Options: given("--carme=/home//x.sif")}, "the path has // in it"},
		"image from /proc":    {Input{Options: given("--carme=/proc/self/root/x.sif")}, "/proc cannot be shown in a job"},
		"image not UTF-8":     {Input{Options: given("--carme=/a\xff")}, "cannot be printed"},
		"image of 1 MB":       {Input{Options: given("--carme=" + long)}, "--carme is 1048576 bytes long; 65536 is the most"},
		"image path too long": {Input{Options: given("--carme=/" + long[:5000])}, "longer than 4095 bytes"},
		"text direction":      {Input{Options: given("--carme=/a\u202eb")}, "cannot be printed"},
		"net unknown":         {Input{Options: given("--carme", "--carme-net=bridge")}, `--carme-net="bridge" is unknown; use host or private`},
		"net empty":           {Input{Options: given("--carme", "--carme-net=")}, "--carme-net needs a value: host or private"},
		"net nat":             {Input{Options: given("--carme", "--carme-net=nat")}, "network mode nat is not available yet; use host or private"},
		"net nat with more":   {Input{Options: given("--carme", "--carme-net=nat:proj1")}, "nat is not available yet"},
		"net host with more":  {Input{Options: given("--carme", "--carme-net=host:x")}, "is unknown"},
		"net by default":      {Input{Options: given("--carme"), Env: map[string]string{"CARME_NET": "x"}}, `CARME_NET="x" is unknown`},
		"home":                {Input{Options: given("--carme", "--carme-home=YES")}, "use yes or no"},
		"debug by default":    {Input{Options: given("--carme"), Env: map[string]string{"CARME_DEBUG": "x"}}, `CARME_DEBUG="x" is unknown`},
		"debug with value":    {Input{Options: given("--carme", "--carme-debug=yes")}, "--carme-debug takes no value"},
		"workdir relative":    {Input{Options: given("--carme", "--carme-workdir=src")}, "the path is relative"},
		"overlay word":        {Input{Options: given("--carme", "--carme-overlay=big")}, "use none, tmpfs or a directory"},
		"overlay in /dev":     {Input{Options: given("--carme", "--carme-overlay=/dev/shm/o")}, "/dev cannot be shown"},
		"overlay read-only":   {Input{Options: given("--carme", "--carme-overlay=/etc/carme:ro")}, "has no : or ,"},
		"two overlays":        {Input{Options: given("--carme", "--carme-overlay=/home/alice/o,/etc/carme")}, "has no : or ,"},
		"overlay upwards":     {Input{Options: given("--carme", "--carme-overlay=/a/..")}, "has .. in it"},
		"conda name":          {Input{Options: given("--carme", "--carme-conda=a b")}, "no name of an environment"},
		"app name":            {Input{Options: given("--carme", "--carme-app=a/b")}, "no name of an app"},
		"conda path":          {Input{Options: given("--carme", "--carme-conda=envs/a")}, "the path is relative"},
		"bind empty":          {Input{Options: given("--carme", "--carme-bind=")}, "--carme-bind needs a value: SRC[:DST[:ro]]"},
		"bind empty entry":    {Input{Options: given("--carme", "--carme-bind=/a,,/b")}, "an entry is empty"},
		"bind comma at end":   {Input{Options: given("--carme", "--carme-bind=/a,")}, "an entry is empty"},
		"bind empty target":   {Input{Options: given("--carme", "--carme-bind=/a::ro")}, "place in the job: the path is empty"},
		"bind no target":      {Input{Options: given("--carme", "--carme-bind=/a:ro")}, "write SRC:DST:ro"},
		"bind four parts":     {Input{Options: given("--carme", "--carme-bind=/a:/b:ro:x")}, "too many colons"},
		"bind mode":           {Input{Options: given("--carme", "--carme-bind=/a:/b:suid")}, `"suid" is unknown; use ro`},
		"bind relative":       {Input{Options: given("--carme", "--carme-bind=a:/b")}, "source: the path is relative"},
		"bind upwards":        {Input{Options: given("--carme", "--carme-bind=/data/../etc:/mnt")}, "source: the path has .. in it"},
		"bind target upwards": {Input{Options: given("--carme", "--carme-bind=/data:/mnt/../etc")}, "place in the job: the path has .. in it"},
		"bind twice":          {Input{Options: given("--carme", "--carme-bind=/a:/mnt,/b:/mnt/")}, "something else is at that place"},
		"bind /":              {Input{Options: given("--carme", "--carme-bind=/:/mnt")}, "/ cannot be shown in a job, because /proc is in it"},
		"bind /dev":           {Input{Options: given("--carme", "--carme-bind=/dev/nvidia1:/mnt/x")}, "/dev cannot be shown"},
		"bind /run":           {Input{Options: given("--carme", "--carme-bind=/run:/mnt/run")}, "because /run/carme is in it"},
		"bind our state":      {Input{Options: given("--carme", "--carme-bind=/run/carme/jobs:/mnt/x")}, "/run/carme cannot be shown"},
		"bind onto /":         {Input{Options: given("--carme", "--carme-bind=/a:/")}, "nothing can be put at /;"},
		"bind onto /proc":     {Input{Options: given("--carme", "--carme-bind=/a:/proc/self")}, "nothing can be put at /proc;"},
		"bind onto /usr":      {Input{Options: given("--carme", "--carme-bind=/a:/usr")}, "nothing can be put over /usr"},
		"bind onto a secret":  {Input{Options: given("--carme", "--carme-bind=/a:/etc/passwd")}, "nothing can be put over /etc;"},
		"bind with newline":   {Input{Options: given("--carme", "--carme-bind=/a\n:/b")}, "cannot be printed"},
		"Apptainer's bind":    {Input{Options: given("--carme=base"), Env: map[string]string{"APPTAINER_BIND": "/dev:/mnt"}}, `APPTAINER_BIND: "/dev:/mnt": /dev cannot be shown`},
		"too many binds":      {Input{Options: given("--carme", "--carme-bind="+strings.Repeat("/a,", 200))}, "201 entries; 128 is the most"},
		"all at once": {
			Input{Options: given("--carme=a b", "--carme-net=x", "--carme-home=y")},
			`--carme="a b" is no name of an image; --carme=list shows those there are, a file is written from / on; --carme-net="x" is unknown; use host or private; --carme-home="y" is unknown; use yes or no`,
		},
		"very many": {Input{Options: given("--carme", "--carme-bind="+strings.Repeat("x,", 100))}, "and 93 more"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := Parse(c.in)
			if err == nil {
				t.Fatalf("got %+v", got)
			}
			checkMessage(t, err)
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %q, want %q", err, c.says)
			}
			if !reflect.DeepEqual(got, Request{}) {
				t.Errorf("a request comes with the error: %+v", got)
			}
		})
	}
}

// checkMessage holds every message to one printable line of bounded length.
func checkMessage(t *testing.T, err error) {
	t.Helper()
	text := err.Error()
	if len(text) > 8000 {
		t.Errorf("message of %d bytes", len(text))
	}
	if i := strings.IndexFunc(text, func(c rune) bool { return !unicode.IsPrint(c) }); i >= 0 {
		t.Errorf("message has an unprintable character at %d: %q", i, text)
	}
	if strings.HasPrefix(text, "carme:") {
		t.Errorf("message has a prefix: %q", text)
	}
}

func TestRecordFromThePluginIsReadAsInput(t *testing.T) {
	rec := new(wire.Record)
	for _, f := range []wire.Field{
		{Key: "mode", Value: "setup"},
		{Key: "opt.carme", Value: "(null)"},
		{Key: "opt.carme_net", Value: "host"},
		{Key: "inherited.carme_home", Value: "no"},
		{Key: "default.carme_net"},
		{Key: "env.CARME_NET", Value: "private"},
		{Key: "job.id", Value: "7"},
	} {
		rec.Add(f.Key, f.Value)
	}
	got := InputFromRecord(rec)
	want := Input{
		Context: ContextRemote,
		Options: []Given{{Name: "carme", Value: "(null)"}, {Name: "carme-net", Value: "host"}, {Name: "carme-home", Value: "no", Inherited: true}},
		Env:     map[string]string{"CARME_NET": "private"}, Defaults: map[string]bool{"carme-net": true},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	check := new(wire.Record)
	check.Add("mode", "check")
	if got := InputFromRecord(check); got.Context != ContextLocal {
		t.Errorf("check is made in context %q", got.Context)
	}
}

// Who has set CARME_NET in ~/.profile has never heard of --carme-net.
func TestRefusalOfADefaultNamesItsVariable(t *testing.T) {
	bad := map[string]string{
		OptCarme: "x y", OptNet: "x", OptBind: "/proc/x", OptWorkdir: "src", OptHome: "x", OptOverlay: "x", OptConda: "$(id)", OptApp: "a b", OptDebug: "x",
	}
	for _, o := range Options() {
		if o.Env == "" {
			continue
		}
		for _, context := range []Context{ContextLocal, ContextRemote} {
			in := Input{Context: context, Defaults: map[string]bool{o.Name: true}}
			if o.Name != OptCarme {
				in.Options = given("--carme")
			}
			of := Given{Name: o.Name, Value: bad[o.Name], Inherited: context == ContextLocal}
			in.Options = append(in.Options, of)
			_, err := Parse(in)
			if err == nil || !strings.HasPrefix(err.Error(), o.Env) || strings.Contains(err.Error(), "--"+o.Name+"=\"") {
				t.Errorf("%s=%q in %s: %v", o.Env, of.Value, context, err)
			}
			refusals := Errors{errors.New("--" + o.Name + "=z is not allowed; use another"), &AboutError{Option: o.Name, Err: errors.New("there is none")}, errors.New("--other")}
			if o.Name == OptCarme {
				refusals = refusals[1:]
			}
			got := in.Named(refusals).Error()
			if strings.Contains(got, "--"+o.Name+"=") || !strings.Contains(got, o.Env+": there is none") || !strings.HasSuffix(got, "; --other") {
				t.Errorf("%s: refused as %q", o.Env, got)
			}
			if context == ContextLocal { // what is typed wins, and is what is refused
				in.Options = append(in.Options, Given{Name: o.Name, Value: "z"})
				if got := in.Named(refusals).Error(); strings.Contains(got, o.Env) {
					t.Errorf("--%s: refused as %q", o.Name, got)
				}
			}
		}
	}
	if r, err := Parse(Input{Options: []Given{{Name: "carme"}, {Name: "carme-debug", Inherited: true}}, Defaults: map[string]bool{"carme-debug": true}}); err != nil || !r.Debug {
		t.Errorf("CARME_DEBUG=yes: %+v, %v", r, err)
	}
}

func TestRequestInARecordIsCheckedLikeOptions(t *testing.T) {
	cases := map[string]struct {
		fields []wire.Field
		says   string
	}{
		"net":      {[]wire.Field{{Key: keyNet, Value: "x"}}, "request.net"},
		"action":   {[]wire.Field{{Key: keyAction, Value: "rm"}}, `request.action="rm"`},
		"twice":    {[]wire.Field{{Key: keyNet, Value: NetHost}, {Key: keyNet, Value: NetHost}}, "2 times"},
		"bind":     {[]wire.Field{{Key: keyBind, Value: "/dev:/mnt"}}, "/dev cannot"},
		"flag":     {[]wire.Field{{Key: keyEnabled, Value: "maybe"}}, "yes or no"},
		"no value": {[]wire.Field{{Key: keyHome, Value: ""}}, "needs a value"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			rec := new(wire.Record)
			for _, f := range c.fields {
				rec.Add(f.Key, f.Value)
			}
			got, err := FromRecord(rec)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("got %+v, %v", got, err)
			}
			checkMessage(t, err)
		})
	}
}

func TestLaterStepMayNotChangeWhatBelongsToTheJob(t *testing.T) {
	first := Request{
		Enabled: true, Image: "base", Net: NetHost, Home: Yes, Overlay: OverlayNone,
		Binds: []Bind{{Src: "/a", Dst: "/a"}, {Src: "/b", Dst: "/mnt", ReadOnly: true}},
	}
	cases := map[string]struct {
		later Request
		says  string
	}{
		"the same":           {first, ""},
		"nothing said":       {Request{Enabled: true}, ""},
		"another image":      {Request{Enabled: true, Image: "other", Workdir: "/", Conda: "x", Debug: true}, ""},
		"binds in any order": {Request{Binds: []Bind{first.Binds[1], first.Binds[0]}}, ""},
		"net":                {Request{Net: NetPrivate, Home: No}, "--carme-net is fixed by the job's first step (host), this step asks for private"},
		"bind":               {Request{Binds: []Bind{{Src: "/c", Dst: "/c"}}}, "--carme-bind is fixed"},
		"home":               {Request{Home: No, Overlay: OverlayTmpfs}, "--carme-home is fixed"},
		"overlay":            {Request{Overlay: "/scratch/" + strings.Repeat("x", 200)}, "--carme-overlay is fixed"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			err := first.JobLevelDiff(c.later)
			if c.says == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("got %v, want %q", err, c.says)
			}
			checkMessage(t, err)
		})
	}
	none := Request{Enabled: true}
	if err := none.JobLevelDiff(Request{Binds: first.Binds}); err == nil || !strings.Contains(err.Error(), "(not set)") {
		t.Errorf("got %v", err)
	}
}

func TestStepMayNotContradictTheJobsSubmission(t *testing.T) {
	job := Request{Enabled: true, Image: "base", Net: NetPrivate, Home: No}
	for name, c := range map[string]struct {
		step Request
		says string
	}{
		"the same":               {job, ""},
		"another image":          {Request{Enabled: true, Image: "other", Net: NetPrivate, Home: No}, ""},
		"what was left open":     {Request{Enabled: true, Net: NetPrivate, Home: No, Overlay: OverlayTmpfs}, ""},
		"another network":        {Request{Enabled: true, Net: NetHost, Home: No}, "--carme-net is fixed by the job's submission (private), this step asks for host"},
		"a home where none was":  {Request{Enabled: true, Net: NetPrivate, Home: Yes}, "--carme-home is fixed by the job's submission (no)"},
		"nothing at all (a bug)": {Request{}, "--carme-net"},
	} {
		t.Run(name, func(t *testing.T) {
			err := job.Contradicts(c.step)
			if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("got %v, want %q", err, c.says)
			}
		})
	}
}

func TestImageTypedWithASpaceIsCaught(t *testing.T) {
	sandbox := func(path string) bool { return path == "/images/dir" || path == "./dir" }
	cases := map[string]struct {
		argv []string
		says string
	}{
		"name":                 {[]string{"base", "hostname"}, `"base" is an image, and with a space Slurm would run it as the command; did you mean --carme=base?`},
		"path":                 {[]string{"/images/x.sif", "hostname"}, "did you mean --carme=/images/x.sif?"},
		"relative path":        {[]string{"./x.sif", "hostname"}, "did you mean --carme=$PWD/x.sif?"},
		"sandbox":              {[]string{"/images/dir", "hostname"}, "did you mean --carme=/images/dir?"},
		"relative sandbox":     {[]string{"./dir"}, "did you mean --carme=$PWD/dir?"},
		"URI":                  {[]string{"docker://ubuntu"}, "did you mean --carme=docker://ubuntu?"},
		"list":                 {[]string{"list"}, "did you mean --carme=list?"},
		"hostile name":         {[]string{"a\n\x1b[31m.sif"}, "write --carme=IMAGE with an equals sign"},
		"hostile length":       {[]string{strings.Repeat("x", 1<<20) + ".sif"}, "write --carme=IMAGE"},
		"a command":            {[]string{"hostname", "base"}, ""},
		"a command by path":    {[]string{"/bin/hostname"}, ""},
		"a command named list": {[]string{"list", "-a"}, ""},
		"no command":           {nil, ""},
		"empty command":        {[]string{""}, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			err := DetectSpacedImage(c.argv, []string{"base", "other"}, sandbox)
			if c.says == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("got %v, want %q", err, c.says)
			}
			checkMessage(t, err)
		})
	}
	if err := DetectSpacedImage([]string{"/images/dir"}, nil, nil); err != nil {
		t.Error(err)
	}
}

func TestWordBehindTheOptionIsFound(t *testing.T) {
	cases := map[string]struct{ words, want []string }{
		"with a space":      {[]string{"srun", "-n2", "--carme", "base", "hostname"}, []string{"base", "hostname"}},
		"another option":    {[]string{"srun", "--carme", "-n2", "hostname"}, nil},
		"end of options":    {[]string{"srun", "--carme", "--", "base"}, nil},
		"equals sign":       {[]string{"srun", "--carme=base", "hostname"}, nil},
		"nothing behind":    {[]string{"srun", "--carme"}, nil},
		"in the command":    {[]string{"srun", "prog", "x"}, nil},
		"nothing was typed": {nil, nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := AfterCarme(c.words); !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestSandboxIsKnownByApptainersMetadata(t *testing.T) {
	dir := t.TempDir()
	if IsSandbox(dir) {
		t.Error("an empty directory is taken for an image")
	}
	mkdir(t, dir+"/.singularity.d")
	if !IsSandbox(dir) {
		t.Error("an image is not recognised")
	}
}

func TestHelpNamesEveryOptionAndItsVariable(t *testing.T) {
	text := Help()
	for _, o := range Options() {
		if !strings.Contains(text, "--"+o.Name) || !strings.Contains(text, o.Env) {
			t.Errorf("--%s or %s is missing in\n%s", o.Name, o.Env, text)
		}
	}
	for line := range strings.Lines(text) {
		if len(line) > 102 {
			t.Errorf("line of %d characters: %s", len(line), line)
		}
	}
}

func TestListShowsWhatTheUserMayUse(t *testing.T) {
	images := []Image{
		{Name: "torch", Description: "PyTorch\n2.9\x1b", Groups: []string{"ml", "carme-admins"}},
		{Name: "base", Description: "Debian with MPI", Default: true},
	}
	cases := map[string]struct {
		groups []string
		want   string
	}{
		"in the group":     {[]string{"users", "ml"}, "IMAGE  DESCRIPTION\nbase*  Debian with MPI\ntorch  PyTorch 2.9\n* used for --carme without a name\n"},
		"not in the group": {[]string{"users"}, "IMAGE  DESCRIPTION\nbase*  Debian with MPI\n* used for --carme without a name\n"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := List(images, c.groups); got != c.want {
				t.Errorf("got\n%s", got)
			}
		})
	}
	if got := List(images[:1], nil); !strings.Contains(got, "no image in the catalogue") {
		t.Errorf("got\n%s", got)
	}
}

func TestKeysOfOptionsDoNotOverlap(t *testing.T) {
	keys := map[string]bool{}
	for _, o := range Options() {
		keys[RecordKey(o.Name)] = true
		keys[InheritedKey(o.Name)] = true
	}
	if len(keys) != 2*len(Options()) {
		t.Errorf("keys are %q", slices.Sorted(maps.Keys(keys)))
	}
}

func FuzzParse(f *testing.F) {
	f.Add("local", "base", "host", "/data:/mnt:ro", "/x", "yes", "tmpfs", "torch", "base", uint8(0xff))
	f.Add("remote", "(null)", "nat:x", "/a,/b:/c,,", "../x", "no", "/o", "/env", "list", uint8(3))
	f.Add("", "list", "", "/:/:/", "/proc", "", "none", "a b", "no", uint8(0x81))
	f.Fuzz(func(t *testing.T, context, image, net, bind, workdir, home, overlay, conda, env string, which uint8) {
		var options []Given
		for i, g := range []Given{
			{Name: OptCarme, Value: image},
			{Name: OptNet, Value: net},
			{Name: OptBind, Value: bind},
			{Name: OptWorkdir, Value: workdir},
			{Name: OptHome, Value: home},
			{Name: OptOverlay, Value: overlay},
			{Name: OptConda, Value: conda},
			{Name: env, Value: image, Inherited: true},
		} {
			if which&(1<<i) != 0 {
				options = append(options, g)
			}
		}
		r, err := Parse(Input{Context: Context(context), Options: options, Env: map[string]string{"CARME": env, "CARME_BIND": net}})
		if err != nil {
			checkMessage(t, err)
			return
		}
		checkTravels(t, r)
		for _, b := range r.Binds {
			checkBind(t, b)
		}
	})
}

// checkTravels holds a request to coming back from a record as it was.
func checkTravels(t *testing.T, r Request) {
	t.Helper()
	data, err := r.Record().MarshalBinary()
	if err != nil {
		t.Fatalf("%+v cannot be encoded: %v", r, err)
	}
	var rec wire.Record
	if err := rec.UnmarshalBinary(data); err != nil {
		t.Fatal(err)
	}
	again, err := FromRecord(&rec)
	if err != nil || !reflect.DeepEqual(again, r) {
		t.Fatalf("%+v came back as %+v, %v", r, again, err)
	}
}

// checkBind holds a bind to clean paths that are not guarded.
func checkBind(t *testing.T, b Bind) {
	t.Helper()
	for _, path := range []string{b.Src, b.Dst} {
		clean, err := CleanPath(path)
		if err != nil || clean != path || strings.Contains(path+"/", "/../") {
			t.Fatalf("bind of %q: %v", path, err)
		}
	}
	if CheckSource(b.Src) != nil || CheckTarget(b.Dst) != nil {
		t.Fatalf("guarded bind %v", b)
	}
}

func mkdir(t *testing.T, path string) {
	t.Helper()
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
}
