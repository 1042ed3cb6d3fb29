# What the browser gets from npm: fetched by the lock files, copied to dist
# folders from which the programs embed it. Nothing of it is in the repository.
TERMINAL_ASSETS := session/terminal/assets

WEB := portal/web/assets
WEB_DIST := $(WEB)/dist/manifest.json

.PHONY: assets
assets: $(TERMINAL_ASSETS)/dist/xterm.js $(WEB_DIST) ## fetch what the browser gets from npm

$(TERMINAL_ASSETS)/dist/xterm.js: $(TERMINAL_ASSETS)/package-lock.json
	@command -v npm >/dev/null || { echo "npm is missing; as root: apt-get install npm" >&2; exit 1; }
	cd $(@D)/.. && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	install -m 644 $(TERMINAL_ASSETS)/node_modules/@xterm/xterm/css/xterm.css $(@D)/
	install -m 644 $(TERMINAL_ASSETS)/node_modules/@xterm/addon-fit/lib/addon-fit.js $(@D)/
	install -m 644 $(TERMINAL_ASSETS)/node_modules/@xterm/xterm/lib/xterm.js $@

$(WEB_DIST): $(WEB)/package-lock.json $(WEB)/build.mjs $(wildcard $(WEB)/src/* portal/web/templates/* portal/web/*.go)
	cd $(WEB) && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error && node build.mjs
