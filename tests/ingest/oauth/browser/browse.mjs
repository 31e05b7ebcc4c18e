// A person at a browser: opens the address, logs in, and agrees or declines, by clicking what a person would.
//
// Arguments: the address. Environment: BROWSE_EXECUTABLE, BROWSE_PROFILE (a folder), BROWSE_SPKI (the one key whose
// certificate is believed), BROWSE_ANSWER (agree | decline), BROWSE_OUT (a file for what was seen at the end).
import { writeFileSync } from 'node:fs';
import { chromium } from 'playwright-core';

const { BROWSE_EXECUTABLE, BROWSE_PROFILE, BROWSE_SPKI, BROWSE_ANSWER, BROWSE_OUT } = process.env;
const context = await chromium.launchPersistentContext(BROWSE_PROFILE, {
  executablePath: BROWSE_EXECUTABLE,
  args: [
    '--no-sandbox',
    '--disable-dev-shm-usage',
    '--no-proxy-server',
    `--ignore-certificate-errors-spki-list=${BROWSE_SPKI}`,
  ],
});
const titles = [];
const referers = [];
context.on('request', (request) => {
  if (request.url().startsWith('http://127.0.0.1')) referers.push(request.headers().referer ?? '');
});
try {
  const page = context.pages()[0] ?? (await context.newPage());
  await page.goto(process.argv[2]);
  titles.push(await page.title());
  await page.fill('input[name=login]', 'alice');
  await page.fill('input[name=password]', 'anything');
  await page.click('button[type=submit]');
  await page.waitForSelector('button[type=submit]:has-text("Continue")');
  titles.push(await page.title());
  if (BROWSE_ANSWER === 'agree') await page.click('button[type=submit]');
  else await page.click('a[href$="/abort"]');
  await page.waitForURL(/^http:\/\/127\.0\.0\.1/);
  const text = await page.innerText('body');
  writeFileSync(BROWSE_OUT, JSON.stringify({ text, titles, referers }));
} finally {
  await context.close();
}
