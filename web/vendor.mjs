// Makes the page's libraries anew: `npm ci && node vendor.mjs`, after a version in package.json was changed. With a folder,
// they are made there instead: `npm run check` compares them with those that are kept.
//
// Each file of vendor/ is bundled and minified with all it imports into one ES module in the page's static/vendor/. Beside
// them, LICENSES.txt has the licences of all packages that are in them, and vendor.json what each file was made of and its
// SHA-256, by which tests/server/page/ finds a file that was changed by hand.
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { build } from 'esbuild';

const HERE = import.meta.dirname;
const TARGET = resolve(process.argv[2] ?? join(HERE, '../afmoe_mlx/server/page/static/vendor'));
const LOCK = JSON.parse(readFileSync(join(HERE, 'package-lock.json'), 'utf8')).packages;

/** The folders of packages that files lie in, as in package-lock.json. */
function packagesOf(inputs) {
  const found = Object.keys(inputs).map((path) => path.match(/^node_modules\/(@[^/]+\/)?[^/]+/)?.[0]);
  return [...new Set(found.filter(Boolean))].sort();
}

function licenceOf(folder) {
  const path = join(HERE, folder);
  const file = readdirSync(path).find((name) => /^licen[cs]e(-mit)?(\.\w+)?$/i.test(name));
  if (!file) throw new Error(`${folder}: no licence`);
  return readFileSync(join(path, file), 'utf8').trim();
}

rmSync(TARGET, { recursive: true, force: true });
const files = {};
const licences = {};
for (const name of readdirSync(join(HERE, 'vendor')).sort()) {
  const { metafile } = await build({
    absWorkingDir: HERE,
    entryPoints: [join('vendor', name)],
    outfile: join(TARGET, name),
    bundle: true,
    minify: true,
    format: 'esm',
    target: 'es2022',
    legalComments: 'none', // they are in LICENSES.txt
    metafile: true,
  });
  const packages = packagesOf(metafile.inputs);
  for (const folder of packages) licences[folder] = licenceOf(folder);
  files[name] = {
    sha256: createHash('sha256')
      .update(readFileSync(join(TARGET, name)))
      .digest('hex'),
    packages: packages.map((folder) => ({
      name: folder.replace('node_modules/', ''),
      version: LOCK[folder].version,
      license: LOCK[folder].license,
      integrity: LOCK[folder].integrity,
    })),
  };
}
const texts = Object.entries(licences).map(
  ([folder, text]) => `${folder.replace('node_modules/', '')} ${LOCK[folder].version}\n\n${text}\n`,
);
writeFileSync(join(TARGET, 'LICENSES.txt'), texts.join(`\n${'-'.repeat(80)}\n\n`));
writeFileSync(join(TARGET, 'vendor.json'), `${JSON.stringify(files, null, 2)}\n`);
