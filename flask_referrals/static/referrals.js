// Shows a new link in place of the form's button. A module runs once, however many forms a page has.
document.addEventListener("submit", async (event) => {
  const form = event.target;
  const action = event.submitter?.getAttribute("formaction") ?? form.getAttribute("action") ?? "";
  const url = new URL(action, document.baseURI);
  if (!form.matches("[data-referral-form]") || url.origin !== location.origin) {
    return;
  }
  event.preventDefault();
  const result = form.querySelector(".referral-result");
  const button = form.querySelector("[type=submit]");
  button.disabled = true;
  try {
    const response = await fetch(url, {
      method: "POST",
      mode: "same-origin", // so that no HTML of another site is shown, also after a redirect
      body: new FormData(form),
      headers: { Accept: "application/json" },
    });
    const answer = await response.json();
    if (response.ok) {
      result.innerHTML = answer.html;
      button.hidden = true;
      result.querySelector("input")?.select();
    } else {
      result.textContent = answer.error;
    }
  } catch {
    form.submit(); // the page without scripts answers in its own way
  } finally {
    button.disabled = false;
  }
});
