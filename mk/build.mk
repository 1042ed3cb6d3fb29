# How the product is compiled and installed. OUT is where the results go; the C
# plugin is built against the Slurm headers of the machine it is built on, so
# that one OUT belongs to one Slurm release.
OUT ?= build/host
DESTDIR ?=
CC ?= gcc
SLURM_INCLUDE ?= /usr/include

CSHIM := spank/cshim
C_WARN := -std=gnu11 -D_GNU_SOURCE -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wformat=2
C_HARD := -O2 -g -fstack-protector-strong -D_FORTIFY_SOURCE=2
C_FLAGS = $(C_WARN) $(C_HARD) -I$(SLURM_INCLUDE)

C_COMMON := $(wildcard $(CSHIM)/common/*.c)
C_HEADERS := $(wildcard $(CSHIM)/*.h $(CSHIM)/*/*.h) mk/build.mk
C_PLUGIN := $(wildcard $(CSHIM)/*.c)
C_ANCHOR := $(filter-out %/hold.c %/enter.c %/slurm.c,$(wildcard $(CSHIM)/anchor/*.c))
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
GO_LINK = -s -w -X github.com/carme-hpc/carme/internal/version.version=$(VERSION) -extldflags "-Wl,-z,lazy"
# Programs without cgo.
GO_LINK_STATIC = -s -w -X github.com/carme-hpc/carme/internal/version.version=$(VERSION)
# Portal and agent are compiled by a profile of each under load, which "make pgo"
# takes. It costs minutes, once, because all that they import is compiled for
# them; PGO=off leaves it out. The files are not called default.pgo: tests and
# linters would compile all that once more.
PGO ?= on
PGO_FLAG = -pgo=$(if $(filter on,$(PGO)),$(CURDIR)/cmd/$(@F)/cpu.pgo,off)
# Gin without MessagePack, which is a quarter of the program and which no page
# speaks.
GIN_FLAG = -tags nomsgpack
GO_SOURCES = $(shell git ls-files -co --exclude-standard -- '*.go' go.mod go.sum 2>/dev/null || find . -name '*.go')

.PHONY: build install
build: $(OUT)/spank_carme.so $(OUT)/carme-anchor $(OUT)/carme-hold $(OUT)/carme-enter $(OUT)/carme-slurm $(OUT)/carme-prolog $(OUT)/carme-host $(OUT)/carme-filter $(OUT)/libcarme.so $(OUT)/carme $(OUT)/carme-session $(OUT)/carme-agent $(OUT)/carme-backend $(OUT)/carme-portal ## Compile the product into OUT

# Symbols are resolved when the plugin is loaded, not when a job needs them, and
# none but SPANK's are exported into Slurm's programs.
$(OUT)/spank_carme.so: $(C_PLUGIN) $(C_COMMON) $(C_HEADERS) $(CSHIM)/version.map
	@mkdir -p $(@D)
	$(CC) $(C_FLAGS) -fPIC -shared -Wl,-z,now,-z,relro -Wl,--version-script=$(CSHIM)/version.map \
		-o $@ $(C_PLUGIN) $(C_COMMON)

# Static: it starts in a third of the time, and depends on no library that a
# user's environment or a broken upgrade could change.
$(OUT)/carme-anchor: $(C_ANCHOR) $(C_COMMON) $(C_HEADERS)
	@mkdir -p $(@D)
	$(CC) $(C_FLAGS) -static -o $@ $(C_ANCHOR) $(C_COMMON)

# Static because they run inside whatever an image holds.
$(OUT)/carme-hold $(OUT)/carme-enter $(OUT)/carme-slurm: $(OUT)/carme-%: $(CSHIM)/anchor/%.c $(C_COMMON) $(C_HEADERS)
	@mkdir -p $(@D)
	$(CC) $(C_FLAGS) -static -o $@ $< $(C_COMMON)

# Static because slurmd starts it for each sealed job.
$(OUT)/carme-prolog: $(CSHIM)/prolog/prolog.c $(C_COMMON) $(C_HEADERS)
	@mkdir -p $(@D)
	$(CC) $(C_FLAGS) -static -o $@ $< $(C_COMMON)

$(OUT)/carme-host: $(CSHIM)/host/host.c $(C_COMMON) $(C_HEADERS)
	@mkdir -p $(@D)
	$(CC) $(C_FLAGS) -fPIE -pie -Wl,-z,now,-z,relro -o $@ $(CSHIM)/host/host.c $(CSHIM)/common/sys.c -ldl

$(OUT)/libcarme.so: $(GO_SOURCES)
	@mkdir -p $(@D)
	CGO_ENABLED=1 go build -trimpath -buildmode=c-shared -ldflags '$(GO_LINK)' -o $@ ./spank
	@rm -f $(@:.so=.h)

# go-nvml finds its symbols at run time: -z lazy, or it would not start on a
# node without a driver.
$(OUT)/carme: $(GO_SOURCES)
	@mkdir -p $(@D)
	CGO_ENABLED=1 go build -trimpath -ldflags '$(GO_LINK)' -o $@ ./cmd/carme

# Static because it runs inside whatever an image holds.
$(OUT)/carme-session: $(GO_SOURCES) $(TERMINAL_ASSETS)/dist/xterm.js
	@mkdir -p $(@D)
	CGO_ENABLED=0 go build -trimpath -ldflags '$(GO_LINK_STATIC)' -o $@ ./cmd/carme-session

$(OUT)/carme-filter: $(GO_SOURCES)
	@mkdir -p $(@D)
	CGO_ENABLED=0 go build -trimpath -ldflags '$(GO_LINK_STATIC)' -o $@ ./cmd/carme-filter

# It does not start without what "make assets" makes.
$(OUT)/carme-portal: $(GO_SOURCES) $(WEB_DIST) cmd/carme-portal/cpu.pgo
	@mkdir -p $(@D)
	CGO_ENABLED=0 go build $(PGO_FLAG) $(GIN_FLAG) -trimpath -ldflags '$(GO_LINK_STATIC)' -o $@ ./cmd/carme-portal

$(OUT)/carme-backend: $(GO_SOURCES)
	@mkdir -p $(@D)
	CGO_ENABLED=0 go build -trimpath -ldflags '$(GO_LINK_STATIC)' -o $@ ./cmd/carme-backend

# With cgo for NVML, as carme itself.
$(OUT)/carme-agent: $(GO_SOURCES) cmd/carme-agent/cpu.pgo
	@mkdir -p $(@D)
	CGO_ENABLED=1 go build $(PGO_FLAG) -trimpath -ldflags '$(GO_LINK)' -o $@ ./cmd/carme-agent

install: build ## Install what was built into OUT below DESTDIR
	install -d $(DESTDIR)/usr/lib/carme $(DESTDIR)/usr/libexec/carme $(DESTDIR)/usr/bin $(DESTDIR)/etc/carme/plugstack.d $(DESTDIR)/etc/carme/images.d
	install -m 755 $(OUT)/spank_carme.so $(OUT)/libcarme.so $(DESTDIR)/usr/lib/carme/
	install -m 755 $(OUT)/carme-anchor $(OUT)/carme-hold $(OUT)/carme-enter $(OUT)/carme-slurm $(OUT)/carme-prolog $(OUT)/carme-host $(OUT)/carme-filter $(OUT)/carme-session $(DESTDIR)/usr/libexec/carme/
	install -m 755 $(OUT)/carme $(DESTDIR)/usr/bin/
	install -d $(DESTDIR)/usr/sbin $(DESTDIR)/usr/lib/sysusers.d $(DESTDIR)/usr/lib/systemd/system $(DESTDIR)/etc/carme/apps.d
	install -m 755 $(OUT)/carme-agent $(OUT)/carme-backend $(OUT)/carme-portal $(DESTDIR)/usr/sbin/
	install -m 644 packaging/sysusers.d/carme.conf $(DESTDIR)/usr/lib/sysusers.d/
	install -m 644 packaging/systemd/* $(DESTDIR)/usr/lib/systemd/system/
	for page in docs/man/*.[1-8]; do install -D -m 644 $$page $(DESTDIR)/usr/share/man/man$${page##*.}/$${page##*/}; done
	install -m 644 contrib/slurm/plugstack.d/carme.conf $(DESTDIR)/etc/carme/plugstack.d/

# The C tests: one program per part, with address and undefined behaviour
# sanitizers. They need neither Slurm nor root; the headers in test/slurm stand in.
C_TEST_OUT := build/test-c
C_TEST := $(CSHIM)/test
C_TESTS := $(patsubst $(C_TEST)/%_test.c,%,$(wildcard $(C_TEST)/*_test.c))
C_TEST_FLAGS := $(C_WARN) -I$(C_TEST) -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
# A test that is about a static function includes that file itself.
C_TEST_WITH_given := -rdynamic # it stands in for Slurm's library
C_TEST_WITH_allocation := -rdynamic # the same
C_TEST_WITH_proof := $(CSHIM)/fail.c
C_TEST_WITH_step := $(CSHIM)/fail.c $(CSHIM)/options.c
C_TEST_WITH_forkhook := $(CSHIM)/fail.c $(CSHIM)/filter.c

$(C_TEST_OUT)/%: $(C_TEST)/%_test.c $(C_TEST)/stub.c $(wildcard $(C_TEST)/*.h $(C_TEST)/slurm/*.h) $(C_PLUGIN) $(C_ANCHOR) $(C_COMMON) $(C_HEADERS)
	@mkdir -p $(@D)
	@$(CC) $(C_TEST_FLAGS) -o $@ $< $(C_TEST)/stub.c $(C_TEST_WITH_$*) $(C_COMMON) -ldl -lpthread

.PHONY: test-c lint-c
test-c: $(addprefix $(C_TEST_OUT)/,$(C_TESTS)) ## C tests under address and undefined behaviour sanitizers
	@bad=; for t in $(C_TESTS); do \
		echo "# $$t"; timeout 60 $(C_TEST_OUT)/$$t || { echo "not ok - $$t ended with status $$?"; bad="$$bad $$t"; }; \
	done >$(C_TEST_OUT)/tap; cat $(C_TEST_OUT)/tap; \
	echo "# $$(grep -c '^ok' $(C_TEST_OUT)/tap) passed, $$(grep -c '^not ok' $(C_TEST_OUT)/tap) failed"; \
	if [ -n "$$bad" ]; then echo "C tests failed:$$bad" >&2; exit 1; fi

# The plugin's own files are compiled with the same warnings by every build,
# against each Slurm release; the rest needs no Slurm.
C_LINT = $(wildcard $(CSHIM)/*.c $(CSHIM)/*/*.c $(CSHIM)/*.h $(CSHIM)/*/*.h bench/*/*.c integration/testdata/*.c)
lint-c: ## clang-format, and warnings as errors
	clang-format --dry-run -Werror $(C_LINT)
	@for f in $(filter-out $(C_PLUGIN) bench/% integration/%,$(filter %.c,$(C_LINT))); do $(CC) $(C_WARN) -O2 -fsyntax-only -I$(C_TEST) $$f || exit 1; done
