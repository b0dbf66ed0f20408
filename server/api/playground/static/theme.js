// Light, dark, or as the system has it. Runs before anything is shown, so that nothing flashes.

(() => {
  const order = ["auto", "light", "dark"];
  const root = document.documentElement;
  let theme = "auto";
  try {
    const kept = localStorage.getItem("nudge.theme");
    if (order.includes(kept)) theme = kept;
  } catch {
    // Without storage the choice lasts as long as the page.
  }

  function show() {
    if (theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) button.textContent = `Theme: ${theme}`;
  }

  show();
  document.addEventListener("DOMContentLoaded", () => {
    show();
    document.getElementById("theme").addEventListener("click", () => {
      theme = order[(order.indexOf(theme) + 1) % order.length];
      try {
        localStorage.setItem("nudge.theme", theme);
      } catch {
        // As above.
      }
      show();
    });
  });
})();
