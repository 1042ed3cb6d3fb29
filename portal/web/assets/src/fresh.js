// What the start page says of the cluster and of one's limits follows them; what is chosen
// in the form stays. It comes from the page itself, for which nobody asks more often than
// the sessions on it change.
const pause = 1000;

function adopt(page) {
  const limits = document.getElementById("limits");
  const fresh = page.getElementById("limits");
  if (limits && fresh) limits.replaceChildren(...fresh.childNodes);
  for (const option of page.querySelectorAll("#gpu_type option")) {
    const own = document.querySelector(`#gpu_type option[value="${CSS.escape(option.value)}"]`);
    if (own && own.textContent !== option.textContent) own.textContent = option.textContent;
  }
  const cluster = document.getElementById("cluster");
  const newest = page.getElementById("cluster");
  if (cluster && newest) cluster.replaceChildren(...newest.childNodes);
  const button = document.querySelector("#start .go button.btn-primary");
  const newer = page.querySelector("#start .go button.btn-primary");
  if (button && newer) button.disabled = newer.disabled;
  const blocked = document.getElementById("blocked");
  const now = page.getElementById("blocked");
  if (blocked && now) blocked.replaceChildren(...now.childNodes);
}

let due;
async function freshen() {
  due = undefined;
  const answer = await fetch("/", { redirect: "manual" }).catch(() => null); // the banner says that it is away
  if (answer?.ok) adopt(new DOMParser().parseFromString(await answer.text(), "text/html"));
}

if (document.getElementById("limits")) {
  for (const topic of ["carme:jobs", "carme:cluster"]) {
    document.body.addEventListener(topic, () => { due ??= setTimeout(freshen, pause); });
  }
}
