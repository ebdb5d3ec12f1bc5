// Shows the ticket that stands behind `#`, where browsers send it to nobody, and goes on to JupyterLab.
const said = document.getElementById('said');
const ticket = new URLSearchParams(location.hash.slice(1)).get('ticket');

async function enter() {
  said.textContent = 'Opening JupyterLab …';
  const headers = { 'Content-Type': 'application/json' };
  const answer = await fetch('/enter', { method: 'POST', headers, body: JSON.stringify({ ticket }) });
  if (answer.ok) {
    location.replace('/jupyter/lab');
    return;
  }
  said.textContent = (await answer.json()).error;
}

if (ticket) {
  // Out of the address and of the history.
  history.replaceState(null, '', location.pathname);
  enter().catch(() => { said.textContent = 'labd does not answer: open JupyterLab from its page again.'; });
}
