// Shows a new link in place of the form's button. A module runs once, however many forms a page has.
document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (!form.matches("[data-referral-form]")) {
    return;
  }
  event.preventDefault();
  const result = form.querySelector(".referral-result");
  const button = form.querySelector("[type=submit]");
  button.disabled = true;
  try {
    const response = await fetch(form.action, {
      method: "POST",
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
