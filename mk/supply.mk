# What Carme is made of, and what is known against it.
SBOM := build/sbom

.PHONY: sbom vuln
sbom: ## bills of materials (CycloneDX, JSON) into build/sbom: Go modules, and what browsers get from npm
	@mkdir -p $(SBOM)
	go run ./tools/carme-sbom -version '$(VERSION)' >$(SBOM)/carme-go.cdx.json
	@for lock in $$(git ls-files '*package-lock.json'); do \
		dir=$${lock%/*}; out=$(CURDIR)/$(SBOM)/$${dir//\//-}.cdx.json; \
		echo "npm sbom of $$dir"; \
		(cd "$$dir" && npm sbom --package-lock-only --sbom-format cyclonedx --loglevel=error) >"$$out" || \
			{ rm -f "$$out"; echo "npm could not write the bill of $$dir: it takes npm 10 or newer" >&2; exit 1; }; \
	done
	@ls -l $(SBOM)

vuln: ## known holes in what the programs call (govulncheck); fails, and says so, without its database
	@tools/vuln
