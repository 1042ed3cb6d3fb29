// One terminal: xterm.js on one side, a websocket on the other. Messages to the
// shell begin with "i" (input) or "r" (size, as JSON); what comes is output.
"use strict";
(() => {
  const says = {
    en: { wait: "Connecting", open: "Connected", ended: "The shell has ended. Press Enter for a new one.", lost: "Connection lost, trying again", more: "New terminal", leave: "Shift+F6 leaves the terminal", reader: "Screen reader" },
    de: { wait: "Verbindung wird aufgebaut", open: "Verbunden", ended: "Die Shell ist beendet. Die Eingabetaste startet eine neue.", lost: "Verbindung unterbrochen, neuer Versuch läuft", more: "Neues Terminal", leave: "Umschalt+F6 verlässt das Terminal", reader: "Screenreader" },
  };
  const lang = navigator.languages.map((one) => one.slice(0, 2)).find((one) => one in says) ?? "en";
  const text = says[lang];
  document.documentElement.lang = lang;

  const number = location.pathname.split("/")[2];
  const state = document.getElementById("state");
  document.getElementById("number").textContent = number;
  document.getElementById("new").textContent = text.more;
  state.textContent = text.wait;
  document.getElementById("new").href = "/t/" + (Number(number) + 1);
  const job = document.body.dataset.job;
  document.title = "Terminal " + number + (job ? " – Job " + job : "");
  document.getElementById("leave").textContent = text.leave;

  const reader = document.getElementById("reader");
  const wants = "screen-reader";
  const term = new Terminal({ cursorBlink: true, scrollback: 10000, screenReaderMode: localStorage.getItem(wants) === "1", theme: { background: "#10141a" } });
  const fit = new FitAddon.FitAddon();
  term.loadAddon(fit);
  term.open(document.getElementById("terminal"));
  fit.fit();
  term.focus();

  // Every key is the shell's; one leads back to the page.
  term.attachCustomKeyEventHandler((event) => {
    if (event.key !== "F6" || !event.shiftKey) return true;
    if (event.type === "keydown") reader.focus();
    event.preventDefault();
    return false;
  });
  reader.textContent = text.reader;
  const read = (on) => {
    term.options.screenReaderMode = on;
    reader.setAttribute("aria-pressed", String(on));
  };
  read(term.options.screenReaderMode);
  reader.addEventListener("click", () => {
    read(!term.options.screenReaderMode);
    localStorage.setItem(wants, term.options.screenReaderMode ? "1" : "0");
    term.focus();
  });

  const encoder = new TextEncoder();
  let socket = null;
  let wait = 250;

  const send = (kind, text) => {
    if (socket && socket.readyState === WebSocket.OPEN) socket.send(encoder.encode(kind + text));
  };
  const size = () => send("r", JSON.stringify({ rows: term.rows, cols: term.cols }));

  const connect = () => {
    socket = new WebSocket(location.origin.replace(/^http/, "ws") + "/t/" + number + "/ws");
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      wait = 250;
      state.textContent = text.open;
      term.reset(); // what is on the screen comes again
      size();
    };
    socket.onmessage = (event) => term.write(new Uint8Array(event.data));
    socket.onclose = (event) => {
      if (event.reason === "ended") {
        state.textContent = text.ended;
        const fresh = term.onData((data) => {
          if (data !== "\r") return;
          fresh.dispose();
          clearTimeout(watch);
          connect();
        });
        look(2000);
        return;
      }
      state.textContent = event.reason && event.reason !== "behind" ? event.reason : text.lost;
      setTimeout(again, wait);
      wait = Math.min(wait * 2, 5000);
    };
  };

  // A session that has ended, or a login, does not come back: the portal has a page for
  // that. A websocket does not say why it was refused.
  const over = async () => {
    const answer = await fetch(location.pathname, { method: "HEAD", cache: "no-store" }).catch(() => null);
    if (![401, 403, 404, 410].includes(answer?.status)) return false;
    location.reload();
    return true;
  };
  const again = async () => { if (!await over()) connect(); };

  // With a session its shells end too, some before it.
  let watch = null;
  const look = (after) => {
    watch = setTimeout(async () => { if (!await over() && socket.readyState === WebSocket.CLOSED) look(Math.min(after * 2, 60000)); }, after);
  };

  term.onData((data) => send("i", data));
  term.onResize(size);
  new ResizeObserver(() => fit.fit()).observe(document.getElementById("terminal"));
  connect();
})();
