import htmx from "htmx.org";
import "./fresh.js";
import "./morph.js";

window.htmx = htmx;

// What was done is said once, not at each reload.
if (new URLSearchParams(location.search).has("done")) history.replaceState(null, "", location.pathname);

// Times are the server's in UTC until the browser says them in its own zone.
const lang = navigator.languages.find((one) => one.startsWith(document.documentElement.lang)) ?? document.documentElement.lang;
const clock = new Intl.DateTimeFormat(lang, { dateStyle: "medium", timeStyle: "short" });
const short = new Intl.DateTimeFormat(lang, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const hour = new Intl.DateTimeFormat(lang, { hour: "numeric", minute: "2-digit" });
const day = new Intl.DateTimeFormat(lang, { day: "numeric", month: "short", hour: "numeric", minute: "2-digit" });
function localise(within) {
  for (const one of within.querySelectorAll("time[datetime]")) {
    const when = new Date(one.getAttribute("datetime"));
    if (Number.isNaN(when.getTime())) continue;
    if (one.dataset.near === undefined) {
      one.textContent = (one.dataset.short === undefined ? clock : short).format(when);
    } else { // of today the time is enough; the rest is there to be pointed at
      one.textContent = (when.toDateString() === new Date().toDateString() ? hour : day).format(when);
      one.title = clock.format(when);
    }
  }
}
localise(document);
document.addEventListener("htmx:afterSwap", (event) => localise(event.detail.target.isConnected ? event.detail.target : document));
document.addEventListener("htmx:afterSettle", () => localise(document));

// The browser keeps no part of a page; one that has not changed is not sent again.
const tags = new Map();
document.addEventListener("htmx:configRequest", (event) => {
  const tag = event.detail.verb === "get" && tags.get(event.detail.path);
  if (tag) event.detail.headers["If-None-Match"] = tag;
});
document.addEventListener("htmx:beforeSwap", (event) => {
  const { xhr, requestConfig } = event.detail;
  const tag = xhr.getResponseHeader("ETag");
  if (xhr.status === 304) event.detail.shouldSwap = false;
  else if (tag && requestConfig.verb === "get") tags.set(requestConfig.path, tag);
});

// One stream says that something changed; fragments fetch what it was. After a
// gap everything is fetched, as what was said meanwhile is not known. A stream on
// which not even the beat comes is dead, whatever the browser thinks of it.
const banner = document.getElementById("offline");
const beat = 15000;
let heard = Date.now();
function offline(is) {
  if (!banner) return;
  if (is && banner.hidden) {
    const asof = document.getElementById("offline-asof");
    asof.textContent = short.format(heard);
    asof.dateTime = new Date(heard).toISOString();
  }
  banner.hidden = !is;
}
function refetch(topic) {
  htmx.trigger(document.body, topic === "cluster" ? "carme:cluster" : "carme:jobs");
}
let source;
let again;
function follow() {
  clearTimeout(again);
  source?.close();
  source = new EventSource("/events");
  let lost = !banner || !banner.hidden;
  source.addEventListener("open", () => {
    heard = Date.now();
    offline(false);
    if (lost) for (const topic of ["jobs", "cluster"]) refetch(topic);
    lost = false;
  });
  source.addEventListener("beat", () => { heard = Date.now(); });
  source.addEventListener("change", (event) => {
    heard = Date.now();
    const topic = event.data.split(" ")[0].split(":")[0];
    setTimeout(() => refetch(topic), Math.random() * 300);
  });
  source.addEventListener("logout", () => {
    source.close();
    keepTyped();
    location.assign(`/login?ended=1&next=${encodeURIComponent(location.pathname + location.search)}`);
  });
  source.addEventListener("error", () => {
    offline(true);
    lost = true;
    if (source.readyState === EventSource.CLOSED) again = setTimeout(follow, 5000);
  });
}
if (document.body.dataset.events !== undefined) {
  follow();
  setInterval(() => {
    // Slept, or cut without a word.
    if (Date.now() - heard > 3 * beat && source.readyState === EventSource.OPEN) {
      offline(true);
      follow();
    }
    // How old the page is goes on counting; nobody says so.
    if (document.getElementById("stale") && banner.hidden) refetch("jobs");
  }, 10000);
}

// How far a job is into its time limit.
setInterval(() => {
  for (const bar of document.querySelectorAll("svg.bar[data-till]")) {
    const { from, till } = bar.dataset;
    const part = (Date.now() / 1000 - from) / (till - from);
    bar.firstElementChild.setAttribute("width", String(Math.round(100 * Math.min(1, Math.max(0, part)))));
  }
}, 30000);

// A page that is left must not leave its stream behind: browsers keep it in
// their back-forward cache otherwise.
document.addEventListener("submit", (event) => {
  const form = event.target;
  // Who logs out need not be told that the login has ended.
  if (form.getAttribute("action") === "/logout") source?.close();
  if (form.dataset.once !== undefined) {
    if (form.dataset.sent) {
      event.preventDefault();
      return;
    }
    form.dataset.sent = "1";
    for (const button of form.querySelectorAll("button[type=submit]")) button.classList.add("btn-loading");
  }
});
window.addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-once]")) {
    delete form.dataset.sent;
    for (const button of form.querySelectorAll(".btn-loading")) button.classList.remove("btn-loading");
  }
});

// The start form: an app brings an image that has it, and an image the app that
// it has; GPUs of the type, the button's text.
const start = document.getElementById("start");
if (start) {
  const offer = JSON.parse(document.getElementById("offer").textContent);
  const image = start.elements.image;
  const type = start.elements.gpu_type;
  const number = start.elements.gpus;
  const chosen = () => start.querySelector("input[name=app]:checked");
  const has = (one, app) => one && app && (one.apps ?? []).includes(app.value);
  const known = () => offer.images.find((one) => one.name === image.value);
  let favourite = image.value; // the image that a person chose last
  const update = (event) => {
    if (event?.target === image) {
      favourite = image.value;
      const first = start.querySelector(`input[name=app][value="${CSS.escape(known()?.apps?.[0] ?? "")}"]`);
      if (first && !has(known(), chosen())) first.checked = true;
    } else if (event?.target.name === "app" || !has(known(), chosen())) {
      const fit = [favourite, image.value, offer.default.image, ...offer.images.map((one) => one.name)].find((name) => has(offer.images.find((one) => one.name === name), chosen()));
      if (fit) image.value = fit;
    }
    const gpu = offer.gpus.find((one) => one.type === type?.value);
    const most = gpu ? gpu.per_node : Math.max(0, ...offer.gpus.map((one) => one.per_node));
    for (const option of number ? number.options : []) {
      option.disabled = Number(option.value) > most;
      if (option.disabled && option.selected) number.value = String(most);
    }
    const app = chosen();
    const label = start.querySelector("[data-start]");
    if (app && label) label.textContent = label.dataset.start.replace("{0}", app.dataset.title);
    const text = document.getElementById("image-text");
    if (text && known() && text.textContent !== known().description) text.textContent = known().description;
  };
  start.addEventListener("change", update);
  // A command is that of the form as it was.
  start.addEventListener("input", () => document.getElementById("script").replaceChildren());
  if (location.pathname === "/") restore(start);
  start.addEventListener("submit", keepTyped);
  // A choice of language or colours shows the page anew.
  for (const form of document.querySelectorAll('form[action="/prefs"]')) form.addEventListener("submit", keepTyped);
  // A browser cannot point at a field that is folded away.
  const more = start.querySelector("details.more");
  start.addEventListener("invalid", (event) => { if (more?.contains(event.target)) more.open = true; }, true);
  update();
  // Who comes back finds the fields as they were, after this has run.
  window.addEventListener("pageshow", () => {
    const own = (field) => field.options ? ![...field.options].some((one) => one.selected && one.defaultSelected) && field.selectedIndex > 0 : field.value !== field.defaultValue;
    if ([...more?.querySelectorAll("input, select") ?? []].some(own)) more.open = true;
    update();
  });
}
if (document.body.dataset.events !== undefined) sessionStorage.removeItem("carme-start");

// What was typed into the start form outlives the end of a login, whether the
// page hears of that or a form that is sent meets it: the same person finds it
// again behind the next login.
function keepTyped() {
  const form = document.getElementById("start");
  if (!form) return;
  const fields = [...new FormData(form)].filter(([name]) => name !== "csrf" && name !== "id");
  sessionStorage.setItem("carme-start", JSON.stringify({ user: document.querySelector(".who").title, fields }));
}
function restore(form) {
  const { user, fields } = JSON.parse(sessionStorage.getItem("carme-start") ?? "{}");
  if (!fields || user !== document.querySelector(".who").title) return;
  for (const [name, value] of fields) {
    const field = form.elements[name];
    if (!field || (field.options && ![...field.options].some((one) => one.value === value && !one.disabled))) continue;
    if (field.value !== value && form.querySelector(`details.more [name="${name}"]`)) form.querySelector("details.more").open = true;
    field.value = value;
  }
}

// Stop asks in a dialog; without one, on a page of its own.
const dialog = document.getElementById("stop-dialog");
function askToStop(event) {
  const link = event.target.closest?.("a[data-stop]");
  if (!dialog || !link || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  dialog.querySelector("h2").textContent = dialog.dataset.title.replace("{0}", () => link.dataset.stop);
  document.getElementById("stop-dialog-text").textContent = link.dataset.text;
  dialog.querySelector("form").action = link.href;
  dialog.showModal();
}
document.addEventListener("click", (event) => {
  if (event.button === 0) askToStop(event);
});
// Links act when Enter goes down, buttons on the character that follows: the
// same stroke that opens the dialog would press the button in it.
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.repeat) askToStop(event);
});
dialog?.addEventListener("click", (event) => {
  if (event.target === dialog || event.target.closest("[data-close]")) dialog.close();
});

// A job's page: the title says that an app is ready, and who has asked for it is
// taken there.
const head = () => document.getElementById("jobhead");
if (head()) {
  const title = document.title;
  const wants = "carme-auto-open";
  let stage = head().dataset.stage;
  const offerAuto = () => {
    const label = document.getElementById("auto");
    if (!label || !label.hidden) return;
    const box = label.querySelector("input");
    box.checked = localStorage.getItem(wants) === "1";
    box.addEventListener("change", () => localStorage.setItem(wants, box.checked ? "1" : "0"));
    label.hidden = false;
  };
  const look = () => {
    if (!head()) return;
    const now = head().dataset.stage;
    const way = document.getElementById("open-app");
    document.title = way ? `\u2713 ${title}` : title;
    if (way && stage !== "ready" && now === "ready" && localStorage.getItem(wants) === "1") location.assign(way.href);
    stage = now;
    offerAuto();
  };
  document.addEventListener("htmx:afterSettle", look);
  look();
}

// Copying, also by buttons that come with a part of a page. Where a browser does
// not let a page write to the clipboard, the text is marked for its own key.
const copies = () => {
  for (const button of document.querySelectorAll("[data-copy][hidden]")) button.hidden = false;
};
copies();
document.addEventListener("htmx:afterSwap", copies);
document.addEventListener("click", async (event) => {
  const button = event.target.closest?.("[data-copy]");
  if (!button) return;
  const from = document.getElementById(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(from.innerText.trim());
  } catch {
    getSelection().selectAllChildren(from);
    return;
  }
  const said = button.querySelector("[data-done]");
  said.dataset.before ??= said.textContent;
  said.textContent = said.dataset.done;
  setTimeout(() => { said.textContent = said.dataset.before; }, 2000);
});
for (const button of document.querySelectorAll("[data-download]")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([`${document.getElementById(button.dataset.download).innerText.trim()}\n`], { type: "text/plain" }));
    link.download = button.dataset.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
}
for (const button of document.querySelectorAll("[data-print]")) {
  button.hidden = false;
  button.addEventListener("click", () => window.print());
}

// Output of a job: what was added since, as long as it runs.
const output = document.getElementById("output");
if (output && output.dataset.url) {
  let next = Number(output.dataset.next);
  // A carriage return begins a line again: of a progress bar the last state is shown.
  let again = output.textContent.endsWith("\r");
  if (again) output.textContent = output.textContent.slice(0, -1);
  const write = (text) => {
    if (!again && !text.includes("\r")) {
      output.append(text);
      return;
    }
    const all = (output.textContent + (again ? "\r" : "") + text).replace(/\r+\n/g, "\n");
    again = all.endsWith("\r");
    output.textContent = all.replace(/\r+$/, "").replace(/[^\n]*\r(?=[^\r\n])/g, "");
  };
  let timer;
  const none = document.getElementById("output-none");
  const more = async () => {
    clearTimeout(timer);
    if (!document.hidden) {
      try {
        const answer = await fetch(`${output.dataset.url}&offset=${next}`, { headers: { Accept: "application/json" } });
        if (answer.ok) {
          const part = await answer.json();
          if (part.text) {
            const atEnd = output.scrollTop + output.clientHeight >= output.scrollHeight - 30;
            if (part.offset < next) output.textContent = "";
            write(part.text);
            if (output.textContent.length > 400000) {
              output.textContent = output.textContent.slice(-300000);
              document.getElementById("output-end").hidden = false;
            }
            output.hidden = false;
            none.hidden = true;
            if (atEnd) output.scrollTop = output.scrollHeight;
          } else if (output.hidden) {
            none.textContent = part.problem || none.dataset.none;
          }
          if (!part.problem) next = part.next;
        }
      } catch { /* the banner says so */ }
    }
    clearTimeout(timer);
    timer = setTimeout(more, document.getElementById("job-live") ? 2000 : 15000);
  };
  output.scrollTop = output.scrollHeight;
  timer = setTimeout(more, 2000);
}
