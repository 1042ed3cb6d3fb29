//go:build integration

package integration

import (
	"testing"
	"time"
)

func TestScenario_W1_W2_a_first_login_enrols_a_second_factor(t *testing.T) {
	b := open(t)
	b.do(goTo(portalURL + "/"))
	if at := b.path(); at != "/login" {
		t.Errorf("a visitor is led to %s", at)
	}
	b.shot("login")
	b.axe("login")
	resetFactor(t, "alice")
	b.password("alice", "alice-pass")
	b.do(appears("#secret"))
	b.shot("enrol")
	b.axe("enrolment")
	b.enrol("alice")
	b.shot("recovery")
	b.axe("recovery codes")
	b.do(goTo(portalURL+"/"), appears("#start"))
	b.shot("dashboard")
	b.axe("dashboard")
	b.clean()
}

// startLab presses the one button of the dashboard and waits until JupyterLab is
// ready. It returns the job's page and id.
func (b *browser) startLab() (page, id string) {
	b.t.Helper()
	b.do(goTo(portalURL+"/"), click("label[for=app-jupyterlab]"), click("#start button[type=submit]"), appears("#jobhead"))
	page = b.path()
	b.within(3*time.Minute, appears(`#jobhead a[href*="`+appsDomain+`"]`))
	return page, b.text("#jobhead p")
}

func TestScenario_W3_W14_two_clicks_to_JupyterLab(t *testing.T) {
	b := open(t)
	b.login("alice")
	b.do(choose("#image", "lab"), click("label[for=app-jupyterlab]"), click("#start button[type=submit]"), appears("#jobhead"))
	b.shot("starting")
	b.within(3*time.Minute, appears(`#jobhead a[href*="`+appsDomain+`"]`))
	b.shot("ready")
	b.axe("job")
	href := ask[string](b, `document.querySelector('#jobhead a[href*="`+appsDomain+`"]').href`)
	t.Log(href)
	b.do(goTo(href))
	b.within(2*time.Minute, appears(".jp-LauncherCard, .jp-Launcher"))
	b.shot("lab")
	b.clean()
}
