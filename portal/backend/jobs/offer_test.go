package jobs

import (
	"testing"

	"github.com/carme-hpc/carme/internal/config"
	"github.com/carme-hpc/carme/internal/wire/api"
)

func TestOffer_begins_with_the_sites_app_else_JupyterLab_in_an_image_that_has_it(t *testing.T) {
	apps := []api.OfferApp{{Name: "terminal"}, {Name: "jupyterlab"}, {Name: "code"}}
	base := api.OfferImage{Name: "base", Apps: []string{"terminal"}}
	lab := api.OfferImage{Name: "lab", Apps: []string{"jupyterlab", "terminal"}}
	torch := api.OfferImage{Name: "torch", Apps: []string{"jupyterlab", "code", "terminal"}}
	for name, c := range map[string]struct {
		site       Default
		spank      string
		images     []api.OfferImage
		app, image string
	}{
		"the default image lacks JupyterLab": {Default{}, "base", []api.OfferImage{base, lab, torch}, "jupyterlab", "lab"},
		"the default image has it":           {Default{}, "torch", []api.OfferImage{base, lab, torch}, "jupyterlab", "torch"},
		"nothing has it":                     {Default{}, "", []api.OfferImage{base}, "terminal", "base"},
		"the site's app":                     {Default{App: "code"}, "base", []api.OfferImage{base, lab, torch}, "code", "torch"},
		"the site's image":                   {Default{Image: "torch"}, "lab", []api.OfferImage{base, lab, torch}, "jupyterlab", "torch"},
		"the site's image without the app":   {Default{App: "jupyterlab", Image: "base"}, "", []api.OfferImage{base, lab}, "jupyterlab", "lab"},
		"the site's app is not offered":      {Default{App: "x"}, "", []api.OfferImage{lab}, "jupyterlab", "lab"},
		"no image":                           {Default{}, "base", nil, "", ""},
	} {
		s := &Service{Default: c.site}
		cfg := &config.Config{Spank: config.Default()}
		cfg.Spank.DefaultImage = c.spank
		app, image := s.beginning(cfg, &api.Offer{Apps: apps, Images: c.images})
		if app != c.app || image != c.image {
			t.Errorf("%s: %s in %s, want %s in %s", name, app, image, c.app, c.image)
		}
	}
}

func TestWhole_leaves_a_cut_character_for_the_next_part(t *testing.T) {
	for text, want := range map[string]string{
		"plain":         "plain",
		"grün":          "grün",
		"gr\xc3":        "gr",
		"ok \xe2\x9c":   "ok ",
		"ok \xff":       "ok \xff", // never becomes one
		"\xe2\x9c":      "\xe2\x9c",
		"":              "",
		"a\xf0\x9f\x98": "a",
	} {
		if got := string(whole([]byte(text))); got != want {
			t.Errorf("%q: %q, not %q", text, got, want)
		}
	}
}
