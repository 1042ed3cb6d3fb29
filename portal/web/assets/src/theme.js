// Before the first paint: a person who has not chosen gets what the system has.
const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");
const apply = () => root.setAttribute("data-bs-theme", root.dataset.theme === "auto" ? (dark.matches ? "dark" : "light") : root.dataset.theme);
apply();
dark.addEventListener("change", apply);
root.classList.add("is-live");
